"""The core as a thread of this process: for tests and measurements that want no second process."""

import asyncio
import threading

import zmq

from capstan_engine import core
from capstan_engine.client.connection import CoreClient
from capstan_engine.engine import Engine
from capstan_engine.errors import EngineDead


class InProcessClient(CoreClient):
    """Runs the core's loop in a thread of this process, around an engine that is already built. For tests."""

    def __init__(self, engine: Engine) -> None:
        super().__init__()
        self._engine = engine
        self._finished = asyncio.Event()

    @property
    def _endpoint(self) -> str:
        return f"inproc://core-{id(self)}"

    async def _launch(self) -> None:
        loop = asyncio.get_running_loop()
        context: zmq.Context[zmq.Socket[bytes]] = zmq.Context.shadow(self._context.underlying)

        def run() -> None:
            channel = core.Channel(context, self._endpoint)
            core.serve(channel, lambda: (self._engine, {}))
            channel.close()
            loop.call_soon_threadsafe(self._finished.set)

        threading.Thread(target=run, name="engine-core", daemon=True).start()

    async def _ended(self) -> str:
        await self._finished.wait()
        return "ended"

    def _kill(self) -> None:
        raise EngineDead("the engine's thread does not end")
