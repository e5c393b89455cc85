"""What `capstan up --replay` leaves behind: one JSON document, and whether the run showed what it claims.

Everything in it was measured: requests and latencies by the client side of the load, limits and replicas from the turns
of the operator. The file holds what is needed to run the same again.
"""

import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from itertools import pairwise
from typing import Any

from capstan_api.status import DecisionStatus
from capstan_api.v1alpha1 import InferenceDeployment
from capstan_cli.frames import Frame
from capstan_cli.measure import Outcome, Summary

_PACKAGES = ("capstan", "torch", "tokenizers", "uvicorn", "aiohttp")


@dataclass(frozen=True)
class Run:
    """A finished replay. `load_started_at` is epoch seconds and the zero of every `second` in the report."""

    deployment: InferenceDeployment
    frames: Sequence[Frame]
    outcomes: Sequence[Outcome]
    summary: Summary
    load_facts: Mapping[str, Any]
    cpu_facts: Mapping[str, Any]
    load_started_at: float
    wall_seconds: float

    def second(self, frame: Frame) -> float:
        return frame.at - self.load_started_at

    @property
    def decisions(self) -> list[DecisionStatus]:
        """Every decision that did something, oldest first."""
        unique = {d: None for frame in self.frames for d in reversed(frame.decisions)}
        return sorted(unique, key=lambda d: d.time)

    @property
    def limit_history(self) -> list[tuple[float, int, int]]:
        """(second, tokens, sequences) at the start and at each change."""
        history: list[tuple[float, int, int]] = []
        for frame in self.frames:
            if frame.limits is not None:
                pair = frame.limits.max_batched_tokens, frame.limits.max_sequences
                if not history or history[-1][1:] != pair:
                    history.append((round(self.second(frame), 2), *pair))
        return history

    @property
    def replica_events(self) -> list[tuple[float, int, int]]:
        """(second, before, after) of each change in the number of ready replicas."""
        return [
            (round(self.second(b), 2), a.replicas_ready, b.replicas_ready)
            for a, b in pairwise(self.frames)
            if a.replicas_ready != b.replicas_ready
        ]

    @property
    def ready_under_load(self) -> list[int]:
        """Ready replicas in each turn from the first that served the load."""
        return [f.replicas_ready for f in self.frames if self.second(f) >= 0] or [0]


def checks(run: Run) -> dict[str, bool]:
    """The claims of the demo, each true or false."""
    ready = run.ready_under_load
    peak = max(ready)
    return {
        "limits_moved": len(run.limit_history) > 1,
        "replicas_rose": peak > ready[0],
        "replicas_fell": ready[-1] < peak,
        "no_accepted_request_lost_or_truncated": run.summary.completed == run.summary.accepted > 0,
    }


def document(run: Run) -> dict[str, Any]:
    """The report as JSON values."""
    spec, summary = run.deployment.spec, run.summary
    history, ready = run.limit_history, run.ready_under_load
    return {
        "name": run.deployment.metadata.name,
        "started": _rfc3339(run.load_started_at),
        "wall_seconds": round(run.wall_seconds, 1),
        "checks": checks(run),
        "requests": {
            "sent": summary.requests,
            "accepted": summary.accepted,
            "completed": summary.completed,
            "lost": summary.lost,
            "truncated": summary.truncated,
            "failed": summary.failed,
            "rejected": summary.rejected,
            "errors": summary.errors,
            "by_replica": summary.by_replica,
        },
        "slos": [
            {
                "name": c.name,
                "requests": c.requests,
                "ttft_threshold_ms": c.ttft_threshold_ms,
                "ttft_p50_ms": c.ttft_ms.p50,
                "ttft_p95_ms": c.ttft_ms.p95,
                "tpot_threshold_ms": c.tpot_threshold_ms,
                "tpot_p50_ms": c.tpot_ms.p50,
                "tpot_p95_ms": c.tpot_ms.p95,
                "attainment_percent": c.attainment_percent,
                "goodput_per_s": c.goodput_per_s,
            }
            for c in summary.classes
        ],
        "limits": {
            "changes": max(len(history) - 1, 0),
            "history": [{"second": s, "max_batched_tokens": t, "max_sequences": n} for s, t, n in history],
        },
        "replicas": {
            "min": min(ready),
            "max": max(ready),
            "events": [{"second": s, "from": a, "to": b} for s, a, b in run.replica_events],
        },
        "throughput": {
            "requests_per_s": summary.requests_per_s,
            "output_tokens_per_s": summary.output_tokens_per_s,
            "prompt_tokens": summary.prompt_tokens,
            "output_tokens": summary.output_tokens,
        },
        "generator": {
            "lateness_ms": asdict(summary.lateness_ms),
            "prompt_tokens_off_by_max": summary.prompt_tokens_off_by_max,
            "note": "The load generator runs on the same machine and takes its own share of the processors.",
        },
        "load": dict(run.load_facts),
        "model": spec.model.model_dump(mode="json", by_alias=True),
        "processors": dict(run.cpu_facts),
        "versions": _versions(),
        "decisions": [d.model_dump(mode="json", by_alias=True) for d in run.decisions],
        "timeline": [_moment(run, frame) for frame in run.frames],
    }


def lines(run: Run) -> list[str]:
    """What the operator did, in words, and each claim with its answer."""
    ready = run.ready_under_load
    moves = "".join(f" → {after}" for _, _, after in run.replica_events)
    history = run.limit_history
    return [
        f"limits changed {max(len(history) - 1, 0)} times",
        f"replicas {run.frames[0].replicas_ready}{moves}; {min(ready)} to {max(ready)} under load",
        *(f"{'yes' if holds else 'NO '}  {name.replace('_', ' ')}" for name, holds in checks(run).items()),
    ]


def _moment(run: Run, frame: Frame) -> dict[str, Any]:
    return {
        "second": round(run.second(frame), 2),
        "requests_per_s": None if frame.requests_per_s is None else round(frame.requests_per_s, 2),
        "waiting": frame.waiting,
        "ready": frame.replicas_ready,
        "wanted": frame.replicas_wanted,
        "kv_usage": [None if r.kv_usage is None else round(r.kv_usage, 3) for r in frame.replicas],
        "slos": {c.name: {"ttft_ms": c.ttft_ms, "tpot_ms": c.tpot_ms} for c in frame.classes},
    }


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version(), "platform": platform.platform()}
    for package in _PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "not installed"
    return versions


def _rfc3339(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
