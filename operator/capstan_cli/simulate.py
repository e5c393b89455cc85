"""`capstan simulate`: what a policy would have made of a trace, as a table, as JSON and as a picture.

Knows how to ask and how to show; what happens in between is `capstan_sim`'s.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from capstan_api.manifest import InvalidResource, read_document
from capstan_api.v1alpha1 import InferenceDeployment, parse
from capstan_cli.errors import InputError
from capstan_cli.traffic import ClassMix, span
from capstan_sim import calibration, workload
from capstan_sim.errors import SimulationError
from capstan_sim.events import Event
from capstan_sim.report import report
from capstan_sim.what_if import WhatIf
from capstan_sim.workload import Workload


@dataclass(frozen=True)
class Options:
    """As typed; see the command's help."""

    trace: Path
    spec: Path
    changes: Sequence[str]
    step_model: str
    kv_tokens: int | None
    policies: Sequence[str]
    window: str | None
    max_prompt: int | None
    clones: int
    seed: int
    mix: ClassMix
    prefix_hits: bool
    cold_start_s: float
    initial_replicas: int | None
    events: Sequence[str]
    is_exact: bool


def run(options: Options, console: Console) -> dict[str, dict[str, Any]]:
    """The reports by policy, in the order asked for; raises `InputError`."""
    try:
        question = _question(options)
        # The last of many must not be found wrong when the others have been asked.
        for policy in options.policies:
            question.check(policy)
        console.print(_sentence(options, question), style="dim", highlight=False)
        bar = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
        with Progress(*bar, console=console, transient=True, disable=not console.is_terminal) as progress:
            return {policy: _answer(question, policy, progress) for policy in options.policies}
    except SimulationError as error:
        raise InputError(str(error)) from None


def table(reports: Mapping[str, Mapping[str, Any]]) -> Table:
    """Policies side by side."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("policy")
    costs = any("cost" in figures for figures in reports.values())
    headings = ["attainment", "GPU-hours", *(["cost"] if costs else []), "scale events", "flips", "limit changes"]
    for heading in (*headings, "bad minutes"):
        table.add_column(heading, justify="right")
    for name, figures in reports.items():
        row = [f"{figures['attainment_percent']:.2f} %", f"{figures['gpu_hours']:.2f}"]
        row += [f"{figures['cost']:.2f}"] if costs else []
        row += [str(figures[key]) for key in ("scale_events", "flips", "limit_changes", "violation_minutes")]
        table.add_row(name, *row)
    return table


def lines(reports: Mapping[str, Mapping[str, Any]]) -> Iterable[str]:
    """Why requests missed, and each class, one line for each."""
    for name, figures in reports.items():
        for slo_class, told in figures["classes"].items():
            if not told["requests"]:
                continue
            latencies = ", ".join(
                f"{kind.upper()} p95 {told[f'{kind}_ms']['p95']:.0f} ms"
                for kind in ("ttft", "tpot")
                if told[f"{kind}_ms"]
            )
            missed = ", ".join(f"{cause.replace('_', ' ')} {count}" for cause, count in told["violations"].items())
            attained = f"{told['attainment_percent']:.2f} % of {told['requests']} requests"
            yield f"{name}: {slo_class} {attained}; {latencies}" + (f"; missed by {missed}" if missed else "")


def write_json(path: Path, reports: Mapping[str, Mapping[str, Any]]) -> None:
    """One report as it is, several under `policies`. The same reports give the same bytes."""
    document = next(iter(reports.values())) if len(reports) == 1 else {"policies": reports}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(document, indent=1) + "\n")
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}") from None


def changed(document: Any, changes: Iterable[str]) -> Any:
    """The resource's document after changes like `scaling.maxReplicas=6` or `slos.chat.objectivePercent="99"`.

    Paths lead through `spec`; an element of a list is named by its `name` or its place. Raises `InputError`.
    """
    for change in changes:
        path, equals, text = change.partition("=")
        if not equals or not path:
            raise InputError(f"--set {change!r} is not PATH=VALUE, as in scaling.maxReplicas=6")
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError:
            raise InputError(f"--set {change!r}: the value is not YAML") from None
        *parents, last = path.removeprefix("spec.").split(".")
        place = document.setdefault("spec", {})
        for parent in parents:
            place = _child(place, parent, change)
        if isinstance(place, list):
            place[_position(place, last, change)] = value
        elif isinstance(place, dict):
            place[last] = value
        else:
            raise InputError(f"--set {change!r}: what is above {last} has no fields")
    return document


def _child(place: Any, name: str, change: str) -> Any:
    if isinstance(place, list):
        return place[_position(place, name, change)]
    if not isinstance(place, dict):
        raise InputError(f"--set {change!r}: what is above {name} has no fields")
    return place.setdefault(name, {})


def _position(elements: list[Any], name: str, change: str) -> int:
    for index, element in enumerate(elements):
        if name == str(index) or (isinstance(element, dict) and element.get("name") == name):
            return index
    raise InputError(f"--set {change!r}: no element is called {name}")


def _sentence(options: Options, question: WhatIf) -> str:
    """What is asked, so that a default is not taken for an answer."""
    requests, replicas = question.workload, question.initial_replicas
    return (
        f"{len(requests):,} requests in {requests.arrival[-1]:,.0f} s; steps of {options.step_model}, "
        f"{question.model.kv_tokens:,} tokens of KV; {replicas} of {question.deployment.spec.scaling.max_replicas} "
        f"replicas at the beginning, {options.cold_start_s:g} s to start another"
    )


def _question(options: Options) -> WhatIf:
    events = tuple(Event.parse(text) for text in options.events)
    deployment = _deployment(options)
    scaling = deployment.spec.scaling
    initial = scaling.min_replicas if options.initial_replicas is None else options.initial_replicas
    if initial > scaling.max_replicas:
        raise InputError(f"--initial-replicas {initial} is above scaling.maxReplicas {scaling.max_replicas}")
    return WhatIf(
        workload=_workload(options, [slo.name for slo in deployment.spec.slos]),
        deployment=deployment,
        model=calibration.named(options.step_model, options.kv_tokens),
        cold_start_s=options.cold_start_s,
        initial_replicas=initial,
        events=events,
        is_exact=options.is_exact,
    )


def _deployment(options: Options) -> InferenceDeployment:
    try:
        return parse(changed(read_document(options.spec), options.changes))
    except InvalidResource as error:
        faults = "".join(f"\n  {fault}" for fault in str(error).splitlines())
        changes = " with the changes of --set" if options.changes else ""
        raise InputError(f"{options.spec}{changes} is not a valid InferenceDeployment:{faults}") from None
    except OSError as error:
        raise InputError(f"cannot read {options.spec}: {error.strerror}") from None


def _workload(options: Options, classes: Sequence[str]) -> Workload:
    requests = workload.read(options.trace, classes)
    if not options.prefix_hits:
        requests = requests.without_cache()
    elif options.is_exact:
        raise InputError("--prefix-hits and --exact exclude each other: the real scheduler has no tokens to compare")
    elif not requests.cached.any():
        raise InputError(f"--prefix-hits: {options.trace} has neither a column cached nor a session that returns")
    if options.window is not None:
        requests = requests.window(*span(options.window))
    if options.max_prompt is not None:
        requests = requests.with_prompts_up_to(options.max_prompt)
    requests = requests.cloned(options.clones, options.seed)
    if options.mix.names:
        unknown = sorted(set(options.mix.names) - set(classes))
        if unknown:
            raise InputError(f"--slo-class-mix: class {unknown[0]} is not declared; known are {', '.join(classes)}")
        bounds = pairwise((0.0, *options.mix.cumulative))
        shares = {name: high - low for name, (low, high) in zip(options.mix.names, bounds, strict=True)}
        requests = requests.with_classes([shares.get(name, 0.0) for name in classes], options.seed)
    return requests


def _answer(question: WhatIf, policy: str, progress: Progress) -> dict[str, Any]:
    task = progress.add_task(policy, total=1.0)
    record = question.ask(policy, lambda share: progress.update(task, completed=share))
    progress.update(task, completed=1.0)
    cost = float(question.deployment.spec.variant.cost_per_hour)
    return {"policy": policy, **report(record, question.objectives, cost_per_replica_hour=cost)}
