"""The core as a process: how it is configured, and every way in which it ends."""

import json
import os
import select
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
import zmq

from capstan_engine.messages import Fatal, Ready, Shutdown, ToFrontEnd, Update
from fakes import make_submit

FAKE_CORE = Path(__file__).with_name("fake_core.py")
TIMEOUT_S = 20
ENGINE_ARGS: dict[str, Any] = {
    "model": "/models/good",
    "served_model_names": ["fake"],
    "max_model_len": 512,
    "envelope": {"min_sequences": 1, "max_sequences": 8, "min_batched_tokens": 8, "max_batched_tokens": 64},
}


class Core:
    """A core process and the front end's end of its socket."""

    def __init__(self, process: subprocess.Popen[bytes], socket: zmq.Socket[bytes]) -> None:
        self.process = process
        self.socket = socket

    def send(self, message: msgspec.Struct) -> None:
        self.socket.send(msgspec.msgpack.encode(message))

    def receive(self) -> ToFrontEnd:
        assert self.socket.poll(TIMEOUT_S * 1000), "the core says nothing"
        return msgspec.msgpack.decode(self.socket.recv(), type=ToFrontEnd)

    def exit_code(self) -> int:
        return self.process.wait(TIMEOUT_S)


@pytest.fixture
def start_core(tmp_path: Path) -> Any:
    @contextmanager
    def start(**changes: object) -> Iterator[Core]:
        endpoint = f"ipc://{tmp_path / 'core'}"
        with zmq.Context() as context, context.socket(zmq.PAIR) as socket:
            socket.linger = 0
            socket.bind(endpoint)
            command = [sys.executable, str(FAKE_CORE), endpoint]
            with subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE) as process:
                assert process.stdin is not None
                process.stdin.write(json.dumps(ENGINE_ARGS | changes).encode() + b"\n")
                process.stdin.flush()
                try:
                    yield Core(process, socket)
                finally:
                    process.kill()

    return start


def test_shutdown_ends_the_core_in_order(start_core: Any) -> None:
    with start_core() as core:
        assert isinstance(core.receive(), Ready)
        core.send(Shutdown())
        assert core.exit_code() == 0


def test_the_core_ends_when_its_standard_input_closes_even_in_the_middle_of_work(start_core: Any) -> None:
    with start_core() as core:
        assert isinstance(core.receive(), Ready)
        core.send(make_submit(max_tokens=500))
        assert isinstance(core.receive(), Update)
        core.process.stdin.close()
        assert core.exit_code() == 0


def test_a_core_does_not_outlive_a_parent_that_was_killed(tmp_path: Path) -> None:
    parent_source = """
import asyncio, sys
from pathlib import Path
from capstan_api.engine_args import EngineArgs
from capstan_engine.client import ProcessClient

async def main():
    client = ProcessClient(EngineArgs.model_validate_json(sys.argv[1]), command=(sys.executable, sys.argv[2]))
    await client.start()
    print(client.pid, flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""
    command = [sys.executable, "-c", parent_source, json.dumps(ENGINE_ARGS), str(FAKE_CORE)]
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as parent:
        assert parent.stdout is not None
        core_pid = int(parent.stdout.readline())
        core = os.pidfd_open(core_pid)
        parent.kill()
        ended, _, _ = select.select([core], [], [], TIMEOUT_S)
        os.close(core)
        assert ended


def test_an_error_while_loading_is_one_message_and_no_traceback(start_core: Any) -> None:
    with start_core(model="/models/broken") as core:
        assert core.receive() == Fatal("config.json: hidden_size is missing", kind="ModelError")
        assert core.exit_code() == 1
        assert core.process.stderr.read() == b""


def test_an_error_of_the_device_is_told_with_its_traceback_in_the_log(start_core: Any) -> None:
    with start_core(model="/models/fails") as core:
        assert isinstance(core.receive(), Ready)
        core.send(make_submit())
        while isinstance(message := core.receive(), Update):
            pass
        assert message == Fatal("RuntimeError: the device is gone")
        assert core.exit_code() == 1
        assert b"Traceback" in core.process.stderr.read()


def test_processors_and_threads_are_settled_before_the_engine_is_built(start_core: Any) -> None:
    processor = min(os.sched_getaffinity(0))
    with start_core(cpus=[processor], num_threads=3) as core:
        ready = core.receive()
        assert isinstance(ready, Ready)
        # Three were allowed, and there is one processor to run them on.
        assert ready.startup_seconds == {"OMP_NUM_THREADS": 1.0}
        assert os.sched_getaffinity(core.process.pid) == {processor}


def test_processors_that_do_not_exist_are_a_configuration_error(start_core: Any) -> None:
    with start_core(cpus=[0, 100_000]) as core:
        message = core.receive()
        assert isinstance(message, Fatal)
        assert message.kind == "ConfigurationError"
        assert "cpus: [100000] cannot be used here" in message.message


def test_wrong_arguments_on_standard_input_are_named() -> None:
    ended = subprocess.run(
        [sys.executable, str(FAKE_CORE), "ipc:///nowhere"],
        input=json.dumps(ENGINE_ARGS | {"block_size": 0}).encode(),
        capture_output=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert ended.returncode == 2
    assert b"block_size" in ended.stderr
    assert b"Traceback" not in ended.stderr


def test_the_core_imports_torch_only_when_it_builds() -> None:
    source = "import sys, capstan_engine.core; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", source], timeout=TIMEOUT_S, check=False).returncode == 0
