"""How long a device does nothing between two steps, from a profile of its own activity.

The span from the first activity to the last is compared with what the activities cover of it, overlaps counted once.
"""

from collections.abc import Callable, Iterable

from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

_ACTIVITIES = {DeviceType.CUDA: ProfilerActivity.CUDA, DeviceType.CPU: ProfilerActivity.CPU}


def busy_share(spans: Iterable[tuple[float, float]]) -> float:
    """Of the time from the first beginning to the last end; 0 to 1. `spans` are (begin, end) and at least one."""
    ordered = sorted(spans)
    begin, end = ordered[0]
    covered = end - begin
    for first, last in ordered[1:]:
        covered += max(0.0, last - max(first, end))
        end = max(end, last)
    return covered / (end - begin)


def activity(call: Callable[[], object], device: DeviceType) -> list[tuple[float, float]]:
    """Begin and end, in microseconds, of all that ran on the device during a call."""
    with profile(activities=[_ACTIVITIES[device]]) as watched:
        call()
    return [(event.time_range.start, event.time_range.end) for event in watched.events() if event.device_type == device]
