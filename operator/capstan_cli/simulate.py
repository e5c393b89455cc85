"""`capstan simulate`: the question that was typed, put to one policy after another.

Answers are the plain data of reports; `simulate_table` and `simulate_plot` show them.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import numpy as np
import yaml
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

from capstan_api.manifest import InvalidResource, read_document
from capstan_api.scaling import Mode
from capstan_api.v1alpha1 import InferenceDeployment, parse
from capstan_cli.errors import InputError
from capstan_cli.traffic import ClassMix, span
from capstan_sim import calibration, workload
from capstan_sim.errors import SimulationError
from capstan_sim.events import Event
from capstan_sim.report import report
from capstan_sim.router import Rule
from capstan_sim.step_time import StepModel
from capstan_sim.what_if import LAWS, WhatIf
from capstan_sim.workload import Workload

_PROFILE: Final = "llama3-8b-h100"
"""Where nothing is said of steps."""
_LATEST_START_S: Final = 86_400.0
"""Of a trace whose times are no dates."""


@dataclass(frozen=True)
class Options:
    """As typed; see the command's help."""

    trace: Path
    spec: Path
    changes: Sequence[str]
    step_model: str | None
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
    routing: str


def run(options: Options, console: Console) -> dict[str, dict[str, Any]]:
    """The reports by policy, in the order asked for; raises `InputError`."""
    try:
        question = _question(options)
        # The last of many must not be found wrong when the others have been asked.
        for policy in options.policies:
            question.check(policy)
        for sentence in _sentences(options, question):
            console.print(sentence, style="dim", highlight=False)
        bar = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
        with Progress(*bar, console=console, transient=True, disable=not console.is_terminal) as progress:
            return {policy: _answer(question, policy, progress) for policy in options.policies}
    except SimulationError as error:
        raise InputError(str(error)) from None


def changed(document: Any, changes: Iterable[str]) -> Any:
    """The resource's document after changes like `scaling.maxReplicas=6` or `slos.chat.objectivePercent="99"`.

    Paths lead through `spec`; an element of a list is named by its `name` or its place. Raises `InputError`.
    """
    if not isinstance(document, dict):
        # What it is instead, is for whoever validates it to say.
        return document
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


def _sentences(options: Options, question: WhatIf) -> Iterable[str]:
    """What is asked, so that a default is not taken for an answer."""
    requests, scaling = question.workload, question.deployment.spec.scaling
    declared = _PROFILE if question.deployment.spec.variant.step_time is None else "the resource's stepTime"
    hits = f", {requests.cached.sum() / requests.prompt.sum():.0%} of their prompt tokens cached"
    yield (
        f"{len(requests):,} requests in {requests.arrival[-1]:,.0f} s{hits if options.prefix_hits else ''}; "
        f"steps of {options.step_model or declared}, {question.model.kv_tokens:,} tokens of KV; "
        f"{question.initial_replicas} of {scaling.max_replicas} replicas at the beginning, "
        f"{options.cold_start_s:g} s to start another"
    )
    if scaling.mode is not Mode.AUTO and not set(options.policies).isdisjoint(LAWS):
        yield (
            f"The resource's scaling.mode is {scaling.mode}, so that nothing scales; "
            "add --set scaling.mode=Auto to see what would"
        )


def _question(options: Options) -> WhatIf:
    events = tuple(Event.parse(text) for text in options.events)
    deployment = _deployment(options)
    scaling = deployment.spec.scaling
    initial = scaling.min_replicas if options.initial_replicas is None else options.initial_replicas
    if initial > scaling.max_replicas:
        raise InputError(f"--initial-replicas {initial} is above scaling.maxReplicas {scaling.max_replicas}")
    requests = _workload(options, [slo.name for slo in deployment.spec.slos])
    for text, event in zip(options.events, events, strict=True):
        if event.start_s > requests.arrival[-1]:
            raise InputError(f"--event {text}: the last request comes at {requests.arrival[-1]:.0f} s, before it")
    return WhatIf(
        workload=requests,
        deployment=deployment,
        model=_steps(options, deployment),
        cold_start_s=options.cold_start_s,
        initial_replicas=initial,
        events=events,
        is_exact=options.is_exact,
        rule=Rule(options.routing),
    )


def _steps(options: Options, deployment: InferenceDeployment) -> StepModel:
    """As asked for, else as the resource declares, else those of a common machine."""
    declared, accelerator = deployment.spec.variant.step_time, deployment.spec.variant.resources.accelerator
    if options.step_model is not None or declared is None:
        return calibration.named(options.step_model or _PROFILE, options.kv_tokens)
    return StepModel.of(declared, options.kv_tokens, 1 if accelerator is None else accelerator.count)


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
    elif requests.arrival[0] > _LATEST_START_S:
        start_s, stop_s = np.floor(requests.arrival[0]), np.ceil(requests.arrival[-1]) + 1
        raise InputError(
            f"{options.trace}: t is seconds from the start, and the first request comes at {start_s:.0f}; "
            f"add --window {start_s:.0f}:{stop_s:.0f}"
        )
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
