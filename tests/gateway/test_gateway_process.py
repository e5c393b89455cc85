"""The gateway as a process: what the parent sees of it."""

import asyncio
import io
import json
import os
import resource
import signal
import sys
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from capstan_api.names import ENV_ADMIN_TOKEN, ENV_API_KEY

CONFIG = {"served_model_names": ["tiny"], "port": 0, "admin_port": 0}


@asynccontextmanager
async def running(tmp_path, *flags, config=CONFIG, **options):
    path = tmp_path / "gateway.json"
    path.write_text(json.dumps(config))
    environment = os.environ | {ENV_ADMIN_TOKEN: "token"}
    environment.pop(ENV_API_KEY, None)
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "capstan_gateway", "--config", str(path), *flags, env=environment,
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        **options,
    )  # fmt: skip
    try:
        async with asyncio.timeout(60):
            yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


def peak_kib(pid):
    return int(Path(f"/proc/{pid}/status").read_text().partition("VmHWM:")[2].split()[0])


async def put(session, listening, replica):
    url = f"http://127.0.0.1:{listening['admin_port']}/admin/replicas"
    body = {"replicas": [{"id": replica.id, "url": replica.url, "state": "Ready"}]}
    async with session.put(url, json=body, headers={"authorization": "Bearer token"}) as response:
        assert response.status == 200


async def test_sigterm_finishes_the_open_stream_and_refuses_new_requests(tmp_path, session, start_replica, scripts):
    replica = await start_replica("r1", scripts.gated)
    async with running(tmp_path) as process:
        listening = json.loads(await process.stdout.readline())
        assert listening["event"] == "listening"
        await put(session, listening, replica)
        url = f"http://127.0.0.1:{listening['port']}/v1/completions"
        replica.gate.release()
        async with session.post(url, json={"prompt": "x", "stream": True}) as response:
            await response.content.readuntil(b"\n\n")
            process.send_signal(signal.SIGTERM)
            status = 200
            while status != 503:
                replica_url = f"http://127.0.0.1:{listening['port']}/readyz"
                async with session.get(replica_url) as probe:
                    status = probe.status
            async with session.post(url, json={"prompt": "x"}) as refused:
                assert refused.status == 503
                assert "retry-after" in refused.headers
            for _ in range(2):
                replica.gate.release()
            assert (await response.read()).endswith(b"[DONE]\n\n")
        assert await process.wait() == 0


async def test_a_second_sigterm_ends_at_once_with_an_error_event(tmp_path, session, start_replica, scripts):
    replica = await start_replica("r1", scripts.gated)
    async with running(tmp_path) as process:
        listening = json.loads(await process.stdout.readline())
        await put(session, listening, replica)
        replica.gate.release()
        url = f"http://127.0.0.1:{listening['port']}"
        async with session.post(f"{url}/v1/completions", json={"prompt": "x", "stream": True}) as response:
            await response.content.readuntil(b"\n\n")
            process.send_signal(signal.SIGTERM)
            status = 200
            while status != 503:
                async with session.get(f"{url}/readyz") as probe:
                    status = probe.status
            process.send_signal(signal.SIGTERM)
            assert b'"draining"' in await response.read()
        assert await process.wait() == 0


async def test_it_holds_more_clients_than_a_process_may_usually_open_files(tmp_path, session):
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)

    def few_files():
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, most))

    async with running(tmp_path, preexec_fn=few_files) as process:
        listening = json.loads(await process.stdout.readline())
        url, state = f"http://127.0.0.1:{listening['port']}/v1/completions", {}
        held = [asyncio.create_task(session.post(url, json={"prompt": "x"})) for _ in range(100)]
        while state.get("held") != len(held):
            state_url = f"http://127.0.0.1:{listening['admin_port']}/admin/state"
            async with session.get(state_url, headers={"authorization": "Bearer token"}) as response:
                state = await response.json()
        for request in held:
            request.cancel()


async def test_it_ends_when_its_parent_is_gone(tmp_path):
    async with running(tmp_path, "--exit-with-parent") as process:
        await process.stdout.readline()
        process.stdin.close()
        assert await process.wait() == 0


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({}, "served_model_names"),
        (CONFIG | {"port": 70000}, "port"),
        (CONFIG | {"colour": 1}, "colour"),
        (CONFIG | {"slo_classes": [{"name": "a", "model_alias": "tiny"}]}, "alias 'tiny'"),
        (CONFIG | {"cpus": [100000]}, "cpus"),
    ],
)
async def test_a_wrong_configuration_is_one_clear_line_and_status_2(tmp_path, config, message):
    async with running(tmp_path, config=config) as process:
        _, errors = await process.communicate()
    assert process.returncode == 2
    (line,) = errors.decode().splitlines()
    assert message in line


async def test_a_taken_port_is_one_clear_line_and_status_1(tmp_path, start_replica):
    taken = int((await start_replica("r")).url.rpartition(":")[2])
    async with running(tmp_path, config=CONFIG | {"port": taken}) as process:
        _, errors = await process.communicate()
    assert process.returncode == 1
    assert f"port {taken}" in errors.decode().splitlines()[-1]
    assert "Traceback" not in errors.decode()


async def test_a_crowd_of_long_prompts_stays_within_its_memory(tmp_path, session):
    body = json.dumps({"prompt": "x" * ((8 << 20) - 4096)}).encode()
    headers = {"content-type": "application/json"}
    async with running(tmp_path) as process:
        listening = json.loads(await process.stdout.readline())
        url = f"http://127.0.0.1:{listening['port']}/v1/completions"

        async def ask():
            async with session.post(url, data=io.BytesIO(body), headers=headers) as response:
                return response.status

        crowd = [asyncio.create_task(ask()) for _ in range(32)]
        done = []
        while len(done) < 20:
            done, _ = await asyncio.wait(crowd, timeout=1)
        assert {task.result() for task in done} == {429}
        assert peak_kib(process.pid) < 256 << 10, "what a gateway is given on a cluster"
        for task in crowd:
            task.cancel()
        await asyncio.gather(*crowd, return_exceptions=True)


async def test_bodies_hold_together_what_the_command_line_allows(tmp_path, session):
    async with running(tmp_path, "--max-body-mebibytes", "1") as process:
        listening = json.loads(await process.stdout.readline())
        url = f"http://127.0.0.1:{listening['port']}/v1/completions"
        async with session.post(url, json={"prompt": "x" * (600 << 10)}) as response:
            assert (response.status, (await response.json())["error"]["code"]) == (429, "too_many_bytes")


async def test_a_bound_that_no_body_fits_into_is_refused(tmp_path):
    async with running(tmp_path, "--max-body-mebibytes", "0") as process:
        assert await process.wait() == 2
        assert b"--max-body-mebibytes" in await process.stderr.read()
