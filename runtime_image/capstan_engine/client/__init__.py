"""The asyncio face of the engine core: requests in, streams of outputs out.

Knows no HTTP and no text. `ProcessClient` starts the core as a child process; `InProcessClient` runs the same loop in a
thread, for tests. Surprising idea: they differ only in how the core is started and how its end is noticed. Both speak
the same frames over a ZeroMQ socket, ipc:// or inproc://, so what a test shows of one holds for the other.
"""

from capstan_engine.client.contract import EngineClient
from capstan_engine.client.in_process import InProcessClient
from capstan_engine.client.process import ProcessClient

__all__ = ["EngineClient", "InProcessClient", "ProcessClient"]
