"""What the server needs of an engine, whichever way it runs."""

from collections.abc import AsyncGenerator, Callable
from typing import Protocol

from capstan_api.limits import BatchLimits
from capstan_engine.errors import EngineDead
from capstan_engine.messages import CoreState, Loading, Output, Ready, Submit, Update


class EngineClient(Protocol):
    """What the server needs of an engine."""

    on_update: list[Callable[[Update], None]]
    """Called with every update of the core, in order, before its outputs reach their streams."""

    on_loading: list[Callable[[Loading], None]]
    """Called at every step of the core's start-up."""

    @property
    def state(self) -> CoreState: ...

    @property
    def last_heartbeat_age_s(self) -> float: ...

    @property
    def num_open(self) -> int: ...

    async def start(self) -> Ready: ...

    def generate(self, submit: Submit) -> AsyncGenerator[Output, None]: ...

    def set_limits(self, limits: BatchLimits) -> None: ...

    async def died(self) -> EngineDead: ...

    async def close(self) -> None: ...
