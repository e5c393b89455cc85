"""The process as the operator runs it: one line of ports, exit codes, signals, and the end of its core or parent."""

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest
from serving import ADMIN_TOKEN, MODEL, make_args, until

from capstan_api import names

TIMEOUT_S = 60
LONG = {"prompt": "The package", "max_tokens": 8000, "ignore_eos": True, "stream": True}


class FrontEndProcess:
    """`python -m capstan_engine`, with its ports."""

    def __init__(self, process: asyncio.subprocess.Process, ports: dict[str, int]) -> None:
        self.process = process
        self.http = httpx.AsyncClient(base_url=f"http://127.0.0.1:{ports['port']}", timeout=TIMEOUT_S)
        self.admin = httpx.AsyncClient(
            base_url=f"http://127.0.0.1:{ports['admin_port']}",
            timeout=TIMEOUT_S,
            headers={"authorization": f"Bearer {ADMIN_TOKEN}"},
        )

    async def ready(self, status: int = 200) -> None:
        """Wait until /readyz answers `status`."""

        async def answers() -> bool:
            return (await self.http.get("/readyz")).status_code == status

        await until(answers)

    def core_pid(self) -> int:
        [pid] = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        return int(pid)


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "capstan_engine", *arguments]


@asynccontextmanager
async def running(*arguments: str, stdin: int | None = None) -> AsyncIterator[FrontEndProcess]:
    """Started on free ports; killed at the end if it still lives."""
    process = await asyncio.create_subprocess_exec(
        *command("--model", str(MODEL), "--port", "0", "--admin-port", "0", *arguments),
        stdin=stdin,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
        env={**os.environ, names.ENV_ADMIN_TOKEN: ADMIN_TOKEN},
    )
    try:
        async with asyncio.timeout(TIMEOUT_S):
            assert process.stdout is not None
            ports = json.loads(await process.stdout.readline())
            assert ports["event"] == "listening"
            front = FrontEndProcess(process, ports)
            async with front.http, front.admin:
                yield front
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def read_until(lines: AsyncIterator[str], found: Callable[[str], bool]) -> list[str]:
    seen: list[str] = []
    async for line in lines:
        seen.append(line)
        if found(line):
            return seen
    return seen


async def test_ports_are_told_before_the_model_is_loaded_and_sigterm_drains() -> None:
    async with running("--max-model-len", "8192") as front:
        assert (await front.http.get("/readyz")).status_code == 503
        assert (await front.http.get("/livez")).status_code == 200
        await front.ready()
        body = LONG | {"max_tokens": 400}
        async with front.http.stream("POST", "/v1/completions", json=body) as answer:
            lines = answer.aiter_lines()
            await read_until(lines, lambda line: line.startswith("data: "))
            front.process.send_signal(signal.SIGTERM)
            await front.ready(503)
            refused = await front.http.post("/v1/completions", json=body)
            assert (refused.status_code, refused.json()["error"]["code"]) == (503, "draining")
            rest = [line async for line in lines if line]
        assert rest[-1] == "data: [DONE]"
        assert json.loads(rest[-2].removeprefix("data: "))["choices"][0]["finish_reason"] == "length"
        assert await front.process.wait() == 0


async def test_death_of_the_core_ends_streams_with_an_error_and_the_process_with_1() -> None:
    async with running() as front:
        await front.ready()
        async with front.http.stream("POST", "/v1/completions", json=LONG) as answer:
            lines = answer.aiter_lines()
            await read_until(lines, lambda line: line.startswith("data: "))
            os.kill(front.core_pid(), signal.SIGKILL)
            rest = [line async for line in lines if line]
        assert rest[-1] == "data: [DONE]"
        assert json.loads(rest[-2].removeprefix("data: "))["error"]["code"] == "engine_dead"
        assert all('"finish_reason":"' not in line for line in rest)
        assert await front.process.wait() == 1


async def test_a_second_signal_ends_open_streams_with_an_error_at_once() -> None:
    async with running() as front:
        await front.ready()
        async with front.http.stream("POST", "/v1/completions", json=LONG) as answer:
            lines = answer.aiter_lines()
            await read_until(lines, lambda line: line.startswith("data: "))
            for _ in range(2):
                front.process.send_signal(signal.SIGTERM)
                await front.ready(503)
            rest = [line async for line in lines if line]
        assert "error" in json.loads(rest[-2].removeprefix("data: "))
        assert await front.process.wait() == 0


async def test_it_ends_with_its_parent_and_takes_the_core_along() -> None:
    async with running("--exit-with-parent", stdin=asyncio.subprocess.PIPE) as front:
        await front.ready()
        core = front.core_pid()
        assert front.process.stdin is not None
        front.process.stdin.close()
        assert await front.process.wait() == 0

        async def gone() -> bool:
            return str(core) not in os.listdir("/proc")

        await until(gone)


async def test_the_step_log_and_limits_of_a_real_engine(tmp_path: Path) -> None:
    log = tmp_path / "steps.csv"
    async with running("--step-log", str(log)) as front:
        await front.ready()
        changed = await front.admin.patch("/admin/limits", json={"max_sequences": 1}, headers={"if-match": "*"})
        assert changed.status_code == 200
        answer = await front.http.post("/v1/completions", json={"prompt": "A", "max_tokens": 5, "n": 3})
        assert answer.status_code == 200
        state = (await front.admin.get("/admin/state")).json()
        assert (state["max_sequences"], state["blocks_held"], state["open_requests"]) == (1, 0, 0)
        front.process.send_signal(signal.SIGTERM)
        assert await front.process.wait() == 0
    header, *rows = log.read_text().splitlines()
    assert header.startswith("number,time,seconds,prefill_tokens,decode_sequences")
    assert len(rows) == state["steps"]
    assert all(int(row.split(",")[4]) <= 1 for row in rows)


async def ended(*arguments: str) -> tuple[int | None, str]:
    process = await asyncio.create_subprocess_exec(
        *command(*arguments), stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE
    )
    async with asyncio.timeout(TIMEOUT_S):
        _, said = await process.communicate()
    return process.returncode, said.decode()


def written(path: Path, **changes: object) -> str:
    settings = make_args().model_dump(mode="json") | {"port": 0, "admin_port": 0} | changes
    path.write_text(json.dumps(settings))
    return str(path)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"block_size": 0}, "block_size: Input should be greater than or equal to 1"),
        ({"nonsense": 1}, "nonsense: Extra inputs are not permitted"),
        ({"slo_classes": []}, "slo_classes: at least one class is needed"),
        ({"cpus": [100_000]}, "cpus: [100000] cannot be used here"),
        ({"step_log": "/nowhere/steps.csv"}, "step_log: cannot write /nowhere/steps.csv: No such file or directory"),
        ({"host": "192.0.2.1"}, "port: cannot listen on 192.0.2.1"),
        ({"model": "/nowhere"}, "/nowhere"),
    ],
    ids=str,
)
async def test_mistakes_are_told_in_one_line_with_exit_code_2(
    tmp_path: Path, changes: dict[str, object], says: str
) -> None:
    code, said = await ended("--config", written(tmp_path / "engine.json", **changes))
    assert code == 2
    assert "Traceback" not in said
    [line] = [line for line in said.splitlines() if line.startswith("capstan_engine: ")]
    assert says in line


async def test_a_file_that_is_no_configuration_is_named(tmp_path: Path) -> None:
    path = tmp_path / "engine.json"
    path.write_text("{")
    code, said = await ended("--config", str(path))
    assert code == 2
    assert f"capstan_engine: {path}: not readable as JSON" in said
