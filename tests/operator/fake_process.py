"""A stand-in for engine and gateway processes: their outside, with nothing inside.

    python fake_process.py engine|gateway --config FILE --exit-with-parent

Listens, becomes ready, tells made-up numbers, keeps limits and a table, and does as it is told at `/test/...`: die,
turn sick, be busy (which a drain waits for), refuse its configuration. An engine with an unlucky queue never starts.
Started by the tests in place of the real programs.
"""

import argparse
import asyncio
import json
import os
import signal
import sys
import threading
from pathlib import Path
from typing import Any

from aiohttp import web

from capstan_api import names
from capstan_api.footprint import MemoryFigures
from capstan_api.metrics import Engine, Gateway

INFEASIBLE_QUEUE = 13


class Fake:
    def __init__(self, kind: str, args: dict[str, Any]) -> None:
        self.kind, self.args = kind, args
        self.sick = False
        self.stubborn = False
        self.busy = 0
        self.held = 0
        self.heartbeat = 0
        self.table: list[dict[str, Any]] = []
        self.end = asyncio.Event()
        self.at_once = asyncio.Event()
        self.limits_version = 0
        envelope = args.get("envelope", {})
        self.top = {key: envelope.get(key) for key in ("max_sequences", "max_batched_tokens")}
        self.limits = dict(self.top)

    def api(self) -> web.Application:
        app = web.Application()
        app.router.add_get("/livez", self.alive)
        app.router.add_get("/readyz", self.ready)
        app.router.add_get("/health", self.alive)
        app.router.add_get("/metrics", self.metrics)
        app.router.add_post("/test/{what}", self.told)
        return app

    def admin(self) -> web.Application:
        app = web.Application(middlewares=[self.guard])
        app.router.add_get("/admin/limits", self.read_limits)
        app.router.add_patch("/admin/limits", self.patch_limits)
        app.router.add_get("/admin/steps", self.steps)
        app.router.add_get("/admin/replicas", self.read_table)
        app.router.add_put("/admin/replicas", self.put_table)
        app.router.add_get("/admin/figures", self.figures)
        app.router.add_put("/admin/config", self.put_config)
        return app

    @web.middleware
    async def guard(self, request: web.Request, handler: Any) -> Any:
        if request.headers.get("Authorization") != f"Bearer {os.environ[names.ENV_ADMIN_TOKEN]}":
            return web.Response(status=401)
        return await handler(request)

    async def alive(self, _: web.Request) -> web.Response:
        return web.Response(status=503 if self.sick else 200)

    async def ready(self, _: web.Request) -> web.Response:
        return web.Response(status=503 if self.end.is_set() else 200)

    async def metrics(self, _: web.Request) -> web.Response:
        self.heartbeat += 1
        if self.kind == "gateway":
            values = {Gateway.HELD: self.held}
        else:
            numbered = (Engine.KV_USAGE, Engine.PREFIX_QUERIES, Engine.PREFIX_HITS, Engine.STEPS, Engine.BUSY)
            values = dict.fromkeys(numbered, 0)
            values |= {Engine.HEARTBEAT: self.heartbeat, Engine.RUNNING: self.busy, Engine.WAITING: 0}
        return web.Response(text="".join(f"{metric.name} {value}\n" for metric, value in values.items()))

    async def told(self, request: web.Request) -> web.Response:
        match request.match_info["what"]:
            case "die":
                print("the fake was told to die", file=sys.stderr, flush=True)
                os._exit(3)
            case "sicken":
                self.sick = True
            case "refuse":
                self.stubborn = True
            case "work":
                self.busy += 1
            case "rest":
                self.busy = 0
                if self.end.is_set():
                    self.at_once.set()
            case "hold":
                self.held += 1
        return web.Response()

    async def read_limits(self, _: web.Request) -> web.Response:
        state = {
            "limits": self.limits,
            "defaults": self.top,
            "envelope": self.args["envelope"],
            "version": self.limits_version,
            "lease_remaining_seconds": None if self.limits == self.top else 60.0,
            "reason": "",
        }
        return web.json_response(state)

    async def patch_limits(self, request: web.Request) -> web.Response:
        if request.headers.get("If-Match") != f'"{self.limits_version}"':
            return web.Response(status=412)
        patch = await request.json()
        self.limits = {key: patch[key] for key in self.top}
        self.limits_version += 1
        return await self.read_limits(request)

    async def steps(self, _: web.Request) -> web.Response:
        return web.json_response({"steps": [], "now": 0.0})

    async def figures(self, _: web.Request) -> web.Response:
        return web.json_response(dict.fromkeys(MemoryFigures.model_fields, 1024) | {"on_device": False})

    async def read_table(self, _: web.Request) -> web.Response:
        rows = [{**row, "in_table": True, "in_flight": 0, "prefill_tokens": 0} for row in self.table]
        return web.json_response({"replicas": rows, "version": None})

    async def put_table(self, request: web.Request) -> web.Response:
        self.table = (await request.json())["replicas"]
        return await self.read_table(request)

    async def put_config(self, request: web.Request) -> web.Response:
        if self.stubborn:
            return web.json_response({"error": {"message": "slo_classes: no."}}, status=400)
        self.args = await request.json()
        print(f"configured: max_held_requests {self.args['max_held_requests']}", file=sys.stderr, flush=True)
        return web.json_response(self.args)


async def serve(fake: Fake, *, exit_with_parent: bool) -> None:
    loop = asyncio.get_running_loop()

    def stop() -> None:
        (fake.at_once if fake.end.is_set() else fake.end).set()

    def orphaned() -> None:
        fake.end.set()
        fake.at_once.set()

    loop.add_signal_handler(signal.SIGTERM, stop)

    def wait_for_parent() -> None:
        while os.read(0, 4096):
            pass
        loop.call_soon_threadsafe(orphaned)

    if exit_with_parent:
        threading.Thread(target=wait_for_parent, daemon=True).start()
    runners, ports = [], []
    for app, port in ((fake.api(), fake.args["port"]), (fake.admin(), fake.args["admin_port"])):
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", port, reuse_address=True).start()
        runners.append(runner)
        ports.append(runner.addresses[0][1])
    print(json.dumps({"event": "listening", "port": ports[0], "admin_port": ports[1]}), flush=True)
    await fake.end.wait()
    if fake.busy:
        await fake.at_once.wait()
    for runner in runners:
        await runner.cleanup()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("kind", choices=["engine", "gateway"])
    parser.add_argument("--config", type=Path)
    parser.add_argument("--exit-with-parent", action="store_true")
    options = parser.parse_args()
    fake = Fake(options.kind, json.loads(options.config.read_text()))
    if fake.args.get("max_queued_requests") == INFEASIBLE_QUEUE:
        sys.exit("fake: infeasible: the queue is unlucky; spec.engine.maxQueuedRequests of 12 would fit")
    asyncio.run(serve(fake, exit_with_parent=options.exit_with_parent))


if __name__ == "__main__":
    main()
