"""`capstan bench`: load against one address, and its figures as a table, JSON and a plot."""

import asyncio
import itertools
from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Console
from rich.table import Table

from capstan_cli import endpoint, generator
from capstan_cli.errors import InputError
from capstan_cli.load import TraceLoad, longest
from capstan_cli.measure import Outcome, Spread, Summary, Thresholds, summarise
from capstan_cli.traffic import Arrival, ClassMix, poisson


@dataclass(frozen=True)
class PoissonLoad:
    """Memoryless arrivals of one length."""

    rate: float
    duration_s: float
    prompt_tokens: int
    output_tokens: int
    mix: ClassMix
    seed: int


@dataclass(frozen=True)
class ClosedLoad:
    """A fixed number of requests always open."""

    concurrency: int
    duration_s: float
    prompt_tokens: int
    output_tokens: int
    mix: ClassMix
    seed: int


Load = TraceLoad | PoissonLoad | ClosedLoad


@dataclass(frozen=True)
class Options:
    """Everything about a run but its load."""

    base: str
    model: str | None
    chat: bool
    temperature: float
    shared_prefix_tokens: int
    seed: int
    timeout_s: float
    max_requests: int
    thresholds: Mapping[str, Thresholds]
    default_thresholds: Thresholds


def run(
    load: Load, options: Options, console: Console, beside: AbstractAsyncContextManager[object] | None = None
) -> tuple[Summary, list[Outcome], dict[str, Any]]:
    """The run's summary, each request's outcome, and the facts of the load. Ctrl-C ends it with KeyboardInterrupt.

    `beside` is held open while the load runs.
    """
    return asyncio.run(_run(load, options, console, nullcontext() if beside is None else beside))


async def _run(
    load: Load, options: Options, console: Console, beside: AbstractAsyncContextManager[object]
) -> tuple[Summary, list[Outcome], dict[str, Any]]:
    arrivals, facts = _arrivals(load)
    if len(arrivals) > options.max_requests:
        raise InputError(f"the load has {len(arrivals):,} requests; raise --max-requests or cut a --window")
    done = 0

    def count(_: Outcome) -> None:
        nonlocal done
        done += 1

    async def tick() -> None:
        while True:
            await asyncio.sleep(5)
            console.print(f"  {done} of {len(arrivals) if arrivals else '…'} requests ended", style="dim")

    async with endpoint.session(options.timeout_s) as client, beside:
        target = await generator.connect(
            client,
            options.base,
            options.model,
            chat=options.chat,
            temperature=options.temperature,
            shared_prefix_tokens=options.shared_prefix_tokens,
            seed=options.seed,
            longest=longest(arrivals) if arrivals else None,
        )
        console.print(f"{_sentence(load, arrivals)} → {target.url} ({target.model})", style="dim")
        ticker = asyncio.create_task(tick())
        try:
            if isinstance(load, ClosedLoad):
                lengths = load.mix.assigned([Arrival(0, load.prompt_tokens, load.output_tokens)] * 1000, load.seed)
                outcomes = await generator.saturate(
                    client, target, itertools.cycle(lengths), load.concurrency, load.duration_s, count
                )
            else:
                outcomes = await generator.replay(client, target, arrivals, count)
        finally:
            ticker.cancel()
    summary = summarise(outcomes, options.thresholds, options.default_thresholds)
    return summary, outcomes, {"url": target.url, "model": target.model, "load": facts}


def _arrivals(load: Load) -> tuple[list[Arrival], dict[str, Any]]:
    match load:
        case TraceLoad():
            arrivals = load.arrivals()
            return arrivals, load.facts(arrivals)
        case PoissonLoad():
            arrivals = poisson(load.rate, load.duration_s, load.prompt_tokens, load.output_tokens, load.seed)
            return load.mix.assigned(arrivals, load.seed), asdict(load)
        case ClosedLoad():
            return [], asdict(load)


def _sentence(load: Load, arrivals: list[Arrival]) -> str:
    match load:
        case TraceLoad():
            return f"{len(arrivals)} requests of {load.path.name} over {arrivals[-1].at_s:.0f} s"
        case PoissonLoad():
            return f"{load.rate:g} requests/s for {load.duration_s:g} s"
        case ClosedLoad():
            return f"{load.concurrency} requests at a time for {load.duration_s:g} s"


def as_json(summary: Summary, outcomes: list[Outcome], facts: dict[str, Any]) -> dict[str, Any]:
    """The report's document: facts, figures, then one entry per request."""
    requests = [
        {
            "index": o.index,
            "slo_class": o.slo_class,
            "sent_s": round(o.sent_s, 4),
            "ttft_ms": _milliseconds(o.ttft_s),
            "tpot_ms": _milliseconds(o.tpot_s),
            "e2e_ms": _milliseconds(o.e2e_s),
            "prompt_tokens": o.prompt_tokens,
            "output_tokens": o.output_tokens,
            "result": str(o.result),
            "detail": o.detail,
            "replica": o.replica,
        }
        for o in outcomes
    ]
    return {**facts, "summary": asdict(summary), "requests": requests}


def table(summary: Summary) -> Table:
    """Percentiles per class in milliseconds, coloured where p95 has a threshold."""
    grid = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for name in ("SLO class", "requests", "good", "ms", "p50", "p95", "p99", "threshold"):
        grid.add_column(name, justify="left" if name in {"SLO class", "ms"} else "right", no_wrap=True)
    for c in summary.classes:
        good = "–" if c.attainment_percent is None else f"{c.attainment_percent:.1f} %"
        grid.add_row(c.name, str(c.requests), good, *_spread("TTFT", c.ttft_ms, c.ttft_threshold_ms))
        grid.add_row("", "", "", *_spread("TPOT", c.tpot_ms, c.tpot_threshold_ms))
        grid.add_row("", "", "", *_spread("E2E", c.e2e_ms, None))
    return grid


def lines(summary: Summary) -> list[str]:
    """The figures of the whole run in words."""
    late = summary.lateness_ms
    out = [
        f"{summary.requests} requests in {summary.seconds:.1f} s: {summary.completed} completed, "
        f"{summary.rejected} rejected, {summary.failed} failed, {summary.lost} lost, {summary.truncated} truncated",
        f"{summary.requests_per_s:.2f} requests/s, {summary.output_tokens_per_s:.0f} output tokens/s, "
        f"goodput {summary.goodput_per_s:.2f} requests/s",
        f"the generator itself was late by {late.p50 or 0:.1f} ms at p50, {late.p99 or 0:.1f} ms at p99",
    ]
    if summary.prompt_tokens_off_by_max:
        out.append(f"prompt lengths differ from those wanted by up to {summary.prompt_tokens_off_by_max} tokens")
    out.extend(f"{count} × {kind}" for kind, count in summary.errors.items())
    return out


def _spread(label: str, spread: Spread, threshold: float | None) -> tuple[str, ...]:
    p95 = _figure(spread.p95)
    if threshold is not None and spread.p95 is not None:
        p95 = f"[{'red' if spread.p95 > threshold else 'green'}]{p95}[/]"
    return label, _figure(spread.p50), p95, _figure(spread.p99), "" if threshold is None else f"{threshold:g}"


def _figure(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}"


def _milliseconds(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1000, 2)
