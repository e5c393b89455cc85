"""How much a reader of the status would miss if the newer of two were never written.

Knows no clock: how long each kind of news may wait is the shell's question. The surprising idea: what was decided and
what people wait for are told at once, while steps on the way there come in bursts and are told once for each burst;
what only measures something must differ by more than it jitters, and what grows with every second (usage, the law's
memory) is news only when it travels with something else or has been silent for very long.
"""

from collections.abc import Iterable
from enum import IntEnum
from typing import Any

from capstan_api.status import ConditionStatus, ConditionType, InferenceDeploymentStatus, SloStatus

_LATENCY_SHARE, _LATENCY_MS = 0.1, 2
_ATTAINMENT_POINTS, _BUDGET_POINTS = 0.5, 1.0


class News(IntEnum):
    """From nothing that matters to what must be told at once."""

    BOOKS = 0
    FIGURES = 1
    PROGRESS = 2
    SUBSTANCE = 3


def news(before: InferenceDeploymentStatus, after: InferenceDeploymentStatus) -> News:
    """What has changed between the status that was written last and this one."""
    if _substance(before) != _substance(after):
        return News.SUBSTANCE
    if _progress(before) != _progress(after):
        return News.PROGRESS
    if _remarks(before) != _remarks(after) or _moved(before.slos, after.slos):
        return News.FIGURES
    return News.BOOKS


def _substance(status: InferenceDeploymentStatus) -> tuple[Any, ...]:
    """What was decided, and whether the resource is ready."""
    limits, recommended = status.effective_batch_limits, status.recommendation
    return (
        status.observed_generation,
        status.desired_replicas,
        (status.selector, status.revision, status.stable_revision, status.endpoint),
        (limits.max_sequences, limits.max_batched_tokens) if limits else None,
        status.decision_history,
        (recommended.action, recommended.to_value) if recommended else None,
        [(c.status, c.reason, c.observed_generation) for c in status.conditions if c.type is ConditionType.READY],
        (status.summary.model, status.summary.variant),
    )


def _progress(status: InferenceDeploymentStatus) -> tuple[Any, ...]:
    """How far the world is on its way: replicas by phase, and all conditions."""
    return (
        (status.replicas, status.ready_replicas),
        (status.pending_replicas, status.starting_replicas, status.draining_replicas),
        [(c.type, c.status, c.reason, c.observed_generation) for c in status.conditions],
        status.startup.samples,
        status.summary.slo,
    )


def _remarks(status: InferenceDeploymentStatus) -> tuple[Any, ...]:
    """What goes along with the substance: sentences about what is not as it should be, and what is merely counted."""
    limits, last = status.effective_batch_limits, status.last_decision
    return (
        [c.message for c in status.conditions if c.status is not ConditionStatus.TRUE],
        limits.applied_replicas if limits else None,
        (last.action, last.reason) if last else None,
        [slo.name for slo in status.slos],
    )


def _moved(before: Iterable[SloStatus], after: Iterable[SloStatus]) -> bool:
    known = {slo.name: slo for slo in before}
    return any(slo.name in known and _differs(known[slo.name], slo) for slo in after)


def _differs(a: SloStatus, b: SloStatus) -> bool:
    return (
        _apart(a.ttft_milliseconds, b.ttft_milliseconds, _LATENCY_MS, _LATENCY_SHARE)
        or _apart(a.tpot_milliseconds, b.tpot_milliseconds, _LATENCY_MS, _LATENCY_SHARE)
        or _apart(a.attainment_percent, b.attainment_percent, _ATTAINMENT_POINTS)
        or _apart(a.error_budget_remaining_percent, b.error_budget_remaining_percent, _BUDGET_POINTS)
    )


def _apart(a: float | str | None, b: float | str | None, least: float, share: float = 0.0) -> bool:
    """Whether two figures differ noticeably; one that was not known before always does."""
    if a is None or b is None:
        return (a is None) is not (b is None)
    low, high = sorted((float(a), float(b)))
    return high - low > max(least, share * high)
