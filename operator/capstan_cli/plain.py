"""`capstan up` without a terminal: a line every few seconds and one for each change, with the time of the run."""

from capstan_api.status import DecisionStatus
from capstan_cli.frames import ClassFrame, Frame
from capstan_cli.view import clock


class PlainLog:
    """Turns frames into lines. It remembers only what it has said already."""

    def __init__(self, interval_s: float = 5.0) -> None:
        self._interval_s = interval_s
        self._start: float | None = None
        self._last_line = float("-inf")
        self._seen: tuple[DecisionStatus, ...] = ()
        self._last_error = ""
        self._phases: dict[str, str] = {}
        self._endpoint: str | None = None

    def lines(self, frame: Frame) -> list[str]:
        """What there is to say after `frame`: nothing most of the time."""
        if self._start is None:
            self._start = frame.at
        at = clock(frame.at - self._start)
        said = [f"{at}  {line}" for line in (*self._changes(frame), *self._decisions(frame), *self._errors(frame))]
        if frame.at - self._last_line >= self._interval_s:
            self._last_line = frame.at
            said.append(f"{at}  {summary(frame)}")
        return said

    def _changes(self, frame: Frame) -> list[str]:
        lines = []
        if frame.endpoint != self._endpoint:
            self._endpoint = frame.endpoint
            lines.append(f"endpoint {frame.endpoint}/v1" if frame.endpoint else "endpoint closed")
        phases = {replica.id: replica.phase for replica in frame.replicas}
        for replica in frame.replicas:
            if self._phases.get(replica.id) != replica.phase:
                reason = f": {replica.message}" if replica.message else ""
                lines.append(f"replica {replica.id} {replica.phase}{reason}")
        lines += [f"replica {gone} gone" for gone in self._phases if gone not in phases]
        self._phases = phases
        return lines

    def _decisions(self, frame: Frame) -> list[str]:
        fresh = [decision for decision in frame.decisions if decision not in self._seen]
        self._seen = frame.decisions
        return [f"decision {d.action}: {d.message}" for d in reversed(fresh)]

    def _errors(self, frame: Frame) -> list[str]:
        error, self._last_error = self._last_error, frame.error or ""
        return [f"turn failed: {frame.error}"] if frame.error and frame.error != error else []


def summary(frame: Frame) -> str:
    """One line with the load, each class, the limits and the replicas."""
    parts = [f"replicas {frame.replicas_ready}/{frame.replicas_wanted}"]
    if frame.requests_per_s is not None:
        parts.append(f"{frame.requests_per_s:.1f} req/s")
    if frame.waiting:
        parts.append(f"{frame.waiting} waiting")
    parts += [_class(c) for c in frame.classes if c.requests]
    if frame.limits is not None:
        parts.append(f"limits {frame.limits.max_batched_tokens} tokens {frame.limits.max_sequences} sequences")
    used = [r.kv_usage for r in frame.replicas if r.kv_usage is not None]
    if used:
        parts.append(f"KV {100 * max(used):.0f} %")
    return " | ".join(parts)


def _class(c: ClassFrame) -> str:
    text = c.name
    for label, value, threshold in (("ttft", c.ttft_ms, c.ttft_threshold_ms), ("tpot", c.tpot_ms, c.tpot_threshold_ms)):
        if value is not None:
            bound = "" if threshold is None else f"/{threshold}{' !' if value > threshold else ''}"
            text += f" {label} p{c.percentile} {value}{bound} ms"
    return text if c.attainment_percent is None else f"{text} {c.attainment_percent:.1f} %"
