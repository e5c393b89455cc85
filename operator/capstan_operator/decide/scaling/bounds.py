"""Between how many replicas the law may choose at this moment, and who says so.

Three may: the resource, a window of its schedules, and the accelerator budget that it shares with others. Knows no
load. The surprising idea: a window's `minReplicas` holds before the window does, by as much as replicas take to start,
so that they are ready when it opens; its `maxReplicas` holds from its beginning to its end and no longer.
"""

from typing import Final, NamedTuple

from capstan_api.scaling import Mode, Scaling
from capstan_operator.decide.scaling.schedule import Window, coming_window, open_window
from capstan_operator.decide.scaling.sizing import USUAL_STARTUP_S
from capstan_operator.decide.seen.observation import Allowance

# Between the turn that starts a replica and its being ready, beyond what starts usually take.
_SLACK_S: Final = 15.0


class Bound(NamedTuple):
    """`reason` is one CamelCase word, `because` a clause for people."""

    replicas: int
    reason: str
    because: str


class Bounds(NamedTuple):
    low: Bound
    high: Bound


def bounds(scaling: Scaling, allowance: Allowance | None, startup_s: float | None, now: float) -> Bounds:
    """Of the modes Auto and Shadow. `startup_s` is what a start takes nearly always, None while none was measured."""
    low = Bound(scaling.min_replicas, "MinReplicas", f"minReplicas is {scaling.min_replicas}")
    high = Bound(scaling.max_replicas, "MaxReplicas", f"maxReplicas is {scaling.max_replicas}")
    if scaling.schedules:
        low, high = _scheduled(scaling, low, high, startup_s, now)
    # A recommendation costs nothing, so nobody divides for it.
    if allowance is not None and scaling.mode is Mode.AUTO and allowance.replicas < high.replicas:
        because = f"the accelerator budget {allowance.budget} leaves {allowance.replicas}"
        high = Bound(allowance.replicas, "AcceleratorBudget", because)
        low = low if low.replicas <= high.replicas else high
    return Bounds(low, high)


def _scheduled(scaling: Scaling, low: Bound, high: Bound, startup_s: float | None, now: float) -> Bounds:
    """The bounds with those of the windows that are open, or about to be."""
    early_s = (USUAL_STARTUP_S if startup_s is None else startup_s) + _SLACK_S
    is_open = [w for each in scaling.schedules if (w := open_window(each, now)) is not None]
    if is_open:
        lows, highs = zip(*(_within(scaling, window) for window in is_open), strict=True)
        low, high = _highest(*lows), _highest(*highs)
    coming = [w for each in scaling.schedules if (w := coming_window(each, now, early_s)) is not None]
    low = _highest(low, *(_within(scaling, window).low for window in coming))
    if low.replicas > high.replicas:
        high = low
    return Bounds(low, high)


def _within(scaling: Scaling, window: Window) -> Bounds:
    """The bounds in this window alone."""
    low, high = scaling.bounds_in(window.schedule)
    whose = f"schedule {window.schedule.name}"
    return Bounds(
        Bound(low, "Schedule", f"{whose} asks for {low} from {window.opens} on"),
        Bound(high, "Schedule", f"{whose} allows {high} since {window.opens}"),
    )


def _highest(*bounds: Bound) -> Bound:
    return max(bounds, key=lambda bound: bound.replicas)
