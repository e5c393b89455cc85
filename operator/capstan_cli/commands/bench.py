"""`capstan bench`: measure a server."""

from pathlib import Path
from typing import Annotated

import typer

from capstan_cli import output
from capstan_cli.commands.options import (
    LOAD,
    OUTPUT,
    AllowRemote,
    Clones,
    Every,
    Json,
    MaxOutput,
    MaxPrompt,
    Mix,
    Model,
    Plot,
    Seed,
    Speedup,
    Window,
)
from capstan_cli.errors import InputError

_LIMITS = "What counts as good"


def bench(
    address: Annotated[str | None, typer.Argument(metavar="URL", help="Same as --url.", show_default=False)] = None,
    url: Annotated[str, typer.Option(help="The server under test.")] = "http://127.0.0.1:8000",
    model: Model = None,
    trace: Annotated[
        Path | None,
        typer.Option(help="CSV with t,prompt,output: seconds and tokens, gzipped or not.", rich_help_panel=LOAD),
    ] = None,
    rate: Annotated[
        float | None, typer.Option(min=0.001, help="Poisson arrivals, requests/s.", rich_help_panel=LOAD)
    ] = None,
    concurrency: Annotated[
        int | None,
        typer.Option(min=1, max=10_000, help="Closed loop: this many requests always open.", rich_help_panel=LOAD),
    ] = None,
    duration: Annotated[
        float, typer.Option(min=0.1, max=86_400, help="Seconds of load, for --rate and --concurrency.")
    ] = 30.0,
    prompt_tokens: Annotated[int, typer.Option(min=1, help="Prompt length, for --rate and --concurrency.")] = 256,
    output_tokens: Annotated[int, typer.Option(min=1, help="Output length, for --rate and --concurrency.")] = 64,
    speedup: Speedup = "1",
    window: Window = None,
    every: Every = 1,
    clones: Clones = 1,
    max_prompt: MaxPrompt = None,
    max_output: MaxOutput = None,
    shared_prefix: Annotated[
        int, typer.Option(min=0, help="Tokens that all prompts begin with alike; 0: no two share a prefix.")
    ] = 0,
    completions: Annotated[
        bool, typer.Option("--completions", help="Use /v1/completions instead of chat completions.")
    ] = False,
    temperature: Annotated[float, typer.Option(min=0, max=2)] = 0.0,
    max_requests: Annotated[int, typer.Option(min=1, max=1_000_000, help="Refuse to send more than this.")] = 100_000,
    timeout: Annotated[float, typer.Option(min=1, max=86_400, help="Seconds after which a request is lost.")] = 600.0,
    slo: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="InferenceDeployment whose thresholds apply.", rich_help_panel=_LIMITS),
    ] = None,
    ttft_ms: Annotated[
        float | None, typer.Option(min=0, help="TTFT threshold of every class.", rich_help_panel=_LIMITS)
    ] = None,
    tpot_ms: Annotated[
        float | None, typer.Option(min=0, help="TPOT threshold of every class.", rich_help_panel=_LIMITS)
    ] = None,
    slo_class_mix: Mix = "",
    json_: Json = None,
    plot: Plot = None,
    calibrate: Annotated[
        Path | None,
        typer.Option(
            metavar="OUT",
            help="Fit the seconds of a step to those that the engine took, and write them as a JSON patch of a "
            "resource: for simulate, and for kubectl patch --type json --patch-file OUT.",
            callback=output.file,
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    engine_admin: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="The engine's admin port, for --calibrate; its token is taken from CAPSTAN_ADMIN_TOKEN.",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    seed: Seed = 0,
    allow_remote: AllowRemote = False,
) -> None:
    """Measure a server: TTFT, TPOT and goodput under a trace, Poisson arrivals, or a fixed concurrency.

    The first two are open loop: arrivals never wait for answers. Prompts are readable text of the exact token counts.
    Exits with 1 when an accepted request failed, was lost or was truncated.
    """
    from rich.console import Console

    from capstan_cli import bench as command
    from capstan_cli import endpoint, resource
    from capstan_cli.load import TraceLoad, declared
    from capstan_cli.measure import Thresholds
    from capstan_cli.traffic import ClassMix, Speed

    if (trace is not None) + (rate is not None) + (concurrency is not None) != 1:
        raise InputError("choose one load: --trace FILE, --rate REQUESTS_PER_SECOND or --concurrency N")
    mix = ClassMix.parse(slo_class_mix) if slo_class_mix else ClassMix()
    load: command.Load
    if trace is not None:
        load = TraceLoad(trace, window, every, clones, max_prompt, max_output, Speed.parse(speedup), mix, seed)
    elif rate is not None:
        load = command.PoissonLoad(rate, duration, prompt_tokens, output_tokens, mix, seed)
    else:
        load = command.ClosedLoad(concurrency or 1, duration, prompt_tokens, output_tokens, mix, seed)
    options = command.Options(
        base=endpoint.base_url(address or url, allow_remote=allow_remote),
        model=model,
        chat=not completions,
        temperature=temperature,
        shared_prefix_tokens=shared_prefix,
        seed=seed,
        timeout_s=timeout,
        max_requests=max_requests,
        thresholds=declared(resource.from_file(slo).spec) if slo else {},
        default_thresholds=Thresholds(ttft_ms, tpot_ms),
    )
    collector = None
    if (calibrate is None) != (engine_admin is None):
        raise InputError("--calibrate OUT and --engine-admin URL belong together")
    if calibrate is not None and engine_admin is not None:
        import os

        from capstan_api.names import ENV_ADMIN_TOKEN
        from capstan_cli import calibrate as calibration

        address = endpoint.base_url(engine_admin, allow_remote=allow_remote)
        collector = calibration.Collector(address, os.environ.get(ENV_ADMIN_TOKEN, ""))
    console = Console()
    summary, outcomes, facts = command.run(load, options, console, collector)
    console.print(command.table(summary))
    for line in command.lines(summary):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    if json_:
        output.write_json(json_, command.as_json(summary, outcomes, facts))
    if calibrate is not None and collector is not None:
        fit = collector.fit(outcomes)
        calibration.write(calibrate, fit)
        console.print(calibration.sentence(fit), highlight=False, soft_wrap=True)
    if plot:
        from capstan_cli import plot as drawing

        drawing.draw(plot, outcomes, options.thresholds or {"default": options.default_thresholds})
    raise typer.Exit(int(summary.failed + summary.lost + summary.truncated > 0))
