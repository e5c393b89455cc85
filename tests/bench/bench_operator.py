"""What a turn of the operator costs: many resources and their pods before an API server in a few lines.

    python tests/bench/bench_operator.py [--resources 200] [--replicas 9] [--rest 20] [--profile 30]

The whole operator runs in this process, the API server with a kubelet that has every pod ready at once in another one.
No engine answers, as on simulated nodes. `--profile` prints the functions that took the most processor time of the
operator's own thread, kopf's aside; it slows everything down. The real API server is asked by
`tests/control_plane/test_at_scale.py`.
"""

import argparse
import asyncio
import cProfile
import json
import multiprocessing
import pstats
import re
import sys
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import aiohttp

sys.path.insert(0, str(Path(__file__).parents[1]))

from capstan_api import names
from fake_kubernetes import FakeKubernetes
from running_operator import running

_NOW = "2026-01-01T00:00:00Z"


class Remote:
    """The API server in its own process: where it listens."""

    def __init__(self, url: str) -> None:
        self.url = url


def serve(pipe: Connection, num_resources: int, num_replicas: int) -> None:
    """Be the API server, with a kubelet and a deployment controller, until the pipe says something."""
    asyncio.run(_serve(pipe, num_resources, num_replicas))


async def _serve(pipe: Connection, num_resources: int, num_replicas: int) -> None:
    async with FakeKubernetes(kinds=frozenset()) as server:
        loop = asyncio.get_running_loop()
        server.on_event = lambda kind, manifest, _: loop.call_soon(_react, server, kind, manifest) and None
        for number in range(num_resources):
            server.put("inferencedeployments", _resource(f"llama-{number}", num_replicas))
        pipe.send(server.url)
        while not pipe.poll():
            await asyncio.sleep(0.2)
            server.requests.clear()


def _react(server: FakeKubernetes, kind: str, manifest: dict[str, Any]) -> None:
    metadata = manifest["metadata"]
    if kind == "deployments" and ("pods", "default", f"{metadata['name']}-x") not in server.objects:
        template = manifest["spec"]["template"]
        pod = {"metadata": {**template["metadata"], "name": f"{metadata['name']}-x"}, "spec": template["spec"]}
        server.put("pods", pod)
    if kind == "pods" and "status" not in server.find("pods", metadata["name"]):
        containers = [
            {"name": each["name"], "restartCount": 0, "state": {"running": {}}}
            for each in manifest["spec"]["containers"]
        ]
        conditions = [
            {"type": each, "status": "True", "lastTransitionTime": _NOW} for each in ("PodScheduled", "Ready")
        ]
        status = {
            "phase": "Running",
            # Nobody listens there.
            "podIP": "127.0.0.9",
            "conditions": conditions,
            "containerStatuses": containers,
        }
        server.change("pods", metadata["name"], status=status)


def _resource(name: str, num_replicas: int) -> dict[str, Any]:
    return {
        "apiVersion": names.API_VERSION,
        "kind": names.KIND,
        "metadata": {"name": name, "generation": 1},
        "spec": {
            "model": {"source": {"uri": "bundled://capstan-tiny"}},
            "slos": [{"name": "interactive", "ttft": {"thresholdMilliseconds": 500}}],
            "scaling": {"mode": "Manual", "replicas": num_replicas, "maxReplicas": 10_000},
        },
    }


async def _figures(url: str) -> dict[str, float]:
    async with aiohttp.ClientSession() as session, session.get(f"{url}/metrics") as answer:
        text = await answer.text()
    found = dict[str, float]()
    for name, value in re.findall(r"^(capstan_operator_\w+)(?:\{.*\})? (\S+)$", text, re.MULTILINE):
        found[name] = found.get(name, 0.0) + float(value)
    ready = re.findall(r"^capstan_ready_replicas\{.*\} (\S+)$", text, re.MULTILINE)
    return {**found, "ready": sum(map(float, ready))}


async def _measure(options: argparse.Namespace, url: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []

    async def over(what: str, until: Any) -> None:
        before, cpu_s, began = await _figures(address), time.process_time(), time.monotonic()
        await until()
        after, cpu_s, passed_s = await _figures(address), time.process_time() - cpu_s, time.monotonic() - began
        turns = after["capstan_operator_turns_total"] - before["capstan_operator_turns_total"]
        calls = after["capstan_operator_api_requests_total"] - before["capstan_operator_api_requests_total"]
        rows.append(
            {
                "what": what,
                "seconds": round(passed_s, 1),
                "cpu_s": round(cpu_s, 1),
                "turns": int(turns),
                "cpu_ms_per_turn": round(1000 * cpu_s / turns, 2),
                "calls_per_resource": round(calls / options.resources, 1),
                "interval_s": round(after["capstan_operator_turn_interval_seconds"], 1),
            }
        )

    async def made() -> None:
        while (await _figures(address))["ready"] < options.resources * options.replicas:  # noqa: ASYNC110
            await asyncio.sleep(1)

    async with running(Remote(url)) as address:  # type: ignore[arg-type]
        await over("made", made)
        await over("at rest", lambda: asyncio.sleep(options.rest))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--resources", type=int, default=200)
    parser.add_argument("--replicas", type=int, default=9)
    parser.add_argument("--rest", type=float, default=20.0, metavar="SECONDS")
    parser.add_argument("--profile", type=int, default=0, metavar="LINES")
    options = parser.parse_args()
    ours, theirs = multiprocessing.Pipe()
    context = multiprocessing.get_context("spawn")
    process = context.Process(target=serve, args=(theirs, options.resources, options.replicas))
    process.start()
    profile = cProfile.Profile()
    try:
        url = ours.recv()
        if options.profile:
            profile.enable()
        rows = asyncio.run(_measure(options, url))
        profile.disable()
    finally:
        ours.send("enough")
        process.join()
    for row in rows:
        print(json.dumps(row))
    if options.profile:
        pstats.Stats(profile).sort_stats("tottime").print_stats(options.profile)
        pstats.Stats(profile).sort_stats("cumulative").print_stats(options.profile)


if __name__ == "__main__":
    main()
