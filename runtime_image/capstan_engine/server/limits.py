"""The limits in force: versioned, leased, inside the envelope.

A change names the version that it is based on, so two operators cannot overwrite each other unseen, and it lasts no
longer than its lease, so limits that nobody renews return to the resource's own values. Knows no HTTP; `Stale` and
`OutsideEnvelope` say what was wrong.
"""

import asyncio
from collections.abc import Callable

from capstan_api.limits import BatchLimits, Envelope, LimitsPatch, LimitsState


class Stale(Exception):
    """The change is based on a version that is no longer in force."""


class OutsideEnvelope(Exception):
    """A limit lies outside what the engine has allocated for. `field` names it."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(message)
        self.field = field


class LeasedLimits:
    """Applies limits through `apply`, and tells `changed` the cause: `operator` or `lease_expired`.

    The lease runs on the event loop's clock; `patch` must be called inside the loop.
    """

    def __init__(
        self, envelope: Envelope, apply: Callable[[BatchLimits], None], changed: Callable[[str], None]
    ) -> None:
        self._envelope = envelope
        self._defaults = envelope.top
        self._limits = envelope.top
        self._apply = apply
        self._changed = changed
        self._reason = ""
        self._lease: asyncio.TimerHandle | None = None
        self.version = 1

    def state(self) -> LimitsState:
        remaining = None if self._lease is None else max(0.0, self._lease.when() - asyncio.get_running_loop().time())
        return LimitsState(
            limits=self._limits,
            defaults=self._defaults,
            envelope=self._envelope,
            version=self.version,
            lease_remaining_seconds=remaining,
            reason=self._reason,
        )

    def patch(self, patch: LimitsPatch, based_on: int | None) -> LimitsState:
        """Change or renew. `based_on` None stands for "whatever is in force". Raises `Stale` or `OutsideEnvelope`."""
        if based_on is not None and based_on != self.version:
            raise Stale(f"version {based_on} is no longer in force; the current one is {self.version}")
        limits = BatchLimits(
            max_sequences=self._limits.max_sequences if patch.max_sequences is None else patch.max_sequences,
            max_batched_tokens=(
                self._limits.max_batched_tokens if patch.max_batched_tokens is None else patch.max_batched_tokens
            ),
        )
        self._check(limits)
        self.end_lease()
        self._lease = asyncio.get_running_loop().call_later(patch.lease_seconds, self._expire)
        self._put_in_force(limits, patch.reason, "operator")
        return self.state()

    def end_lease(self) -> None:
        """Stop the clock: what is in force stays to the end of the process."""
        if self._lease is not None:
            self._lease.cancel()
            self._lease = None

    def _expire(self) -> None:
        self._lease = None
        self._put_in_force(self._defaults, "the lease ran out; the defaults are back", "lease_expired")

    def _put_in_force(self, limits: BatchLimits, reason: str, cause: str) -> None:
        self.version += 1
        self._reason = reason
        if limits != self._limits:
            self._limits = limits
            self._apply(limits)
            self._changed(cause)

    def _check(self, limits: BatchLimits) -> None:
        envelope = self._envelope
        bounds = {
            "max_sequences": (limits.max_sequences, envelope.min_sequences, envelope.max_sequences),
            "max_batched_tokens": (limits.max_batched_tokens, envelope.min_batched_tokens, envelope.max_batched_tokens),
        }
        for field, (value, lowest, highest) in bounds.items():
            if not lowest <= value <= highest:
                raise OutsideEnvelope(field, f"{field} {value} is outside the envelope {lowest}..{highest}")
