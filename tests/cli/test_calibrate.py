"""`capstan bench --calibrate`: the steps of exactly this load, and a model of them that the simulator reads."""

import json
from dataclasses import astuple
from pathlib import Path

import pytest
from aiohttp import web

from capstan_api.manifest import read_document
from capstan_api.v1alpha1 import parse
from capstan_cli import calibrate
from capstan_cli.errors import CliError, Unreachable
from capstan_cli.measure import Outcome, Result
from capstan_sim.calibration import named
from capstan_sim.step_time import StepModel

EXAMPLES = Path(__file__).parents[2] / "crds" / "examples"
TRUTH = StepModel(0.01, 1e-4, 2e-4, 0.0, 0.0, kv_tokens=1600)


class FakeEngine:
    """The admin port of an engine that took 50 steps before, and takes 20 between any two looks."""

    def __init__(self) -> None:
        self.steps = [self.step(number, seconds=9.0) for number in range(1, 51)]
        self.answers = True
        self.per_look = 20
        self.looked = 0

    def step(self, number: int, seconds: float | None = None) -> tuple[float, ...]:
        work = (100 * (number % 4), number % 7, 50 * (number % 7), 0)
        # Times that tell of no pause.
        return (number, 0.0, TRUTH.seconds(*work) if seconds is None else seconds, *work)

    async def state(self, request: web.Request) -> web.Response:
        if request.headers.get("authorization") != "Bearer secret":
            return web.json_response({"error": {"message": "no"}}, status=401)
        return web.json_response({"blocks_total": 100, "block_size": 16})

    async def recent(self, request: web.Request) -> web.Response:
        if not self.answers:
            return web.Response(status=500)
        after = int(request.query["after"])
        fresh = [step for step in self.steps if step[0] > after]
        self.looked += 1
        # Taken while the answer is on its way.
        self.steps += [self.step(len(self.steps) + 1 + i) for i in range(self.per_look if after else 0)]
        return web.json_response({"steps": fresh, "now": 0.0})


@pytest.fixture
async def engine():
    fake = FakeEngine()
    app = web.Application()
    app.router.add_get("/admin/state", fake.state)
    app.router.add_get("/admin/steps", fake.recent)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    fake.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    yield fake
    await runner.cleanup()


async def test_only_steps_of_this_load_are_fitted(engine, tmp_path, monkeypatch):
    monkeypatch.setattr(calibrate, "_INTERVAL_S", 0.001)
    async with calibrate.Collector(engine.url, "secret") as collector:
        seen = engine.looked
        while engine.looked < seen + 20:
            await calibrate.asyncio.sleep(0.001)
    fit = collector.fit([])
    # The fifty steps of before took nine seconds each.
    assert fit.model.base_s == pytest.approx(TRUTH.base_s, rel=0.02)
    assert fit.model.prefill_token_s == pytest.approx(TRUTH.prefill_token_s, rel=0.02)
    calibrate.write(tmp_path / "out" / "model.json", fit)
    read = named(str(tmp_path / "out" / "model.json"), None)
    assert astuple(read) == pytest.approx(astuple(fit.model), rel=1e-4, abs=1e-9)
    assert fit.model.kv_tokens == 1600
    # Where the operator reads it: `kubectl patch --type json` does the same.
    [patch] = json.loads((tmp_path / "out" / "model.json").read_text())
    resource = read_document(EXAMPLES / "quickstart.yaml")
    assert (patch["op"], patch["path"]) == ("add", "/spec/variants/0/stepTime")
    resource["spec"].setdefault("variants", [{"name": "cpu"}])[0]["stepTime"] = patch["value"]
    declared = parse(resource).spec.variant.step_time
    assert declared is not None
    assert StepModel.of(declared) == read
    assert "1,600 tokens of KV" in calibrate.sentence(fit)


async def test_a_look_that_fails_loses_no_step(engine, monkeypatch):
    monkeypatch.setattr(calibrate, "_INTERVAL_S", 1000.0)
    collector = calibrate.Collector(engine.url, "secret")
    await collector.__aenter__()
    engine.steps += [engine.step(number) for number in range(len(engine.steps) + 1, 200)]
    engine.answers = False
    await collector._look()
    engine.answers = True
    await collector.__aexit__(None, None, None)
    assert [step.number for step in collector._steps] == list(range(51, len(collector._steps) + 51))
    assert len(collector._steps) >= 100


def test_only_requests_that_met_nobody_tell_what_lies_outside_of_steps():
    def request(sent_s: float, first_s: float | None, ended_s: float) -> Outcome:
        result = Result.COMPLETED if first_s is not None else Result.FAILED
        return Outcome(0, None, sent_s, sent_s, ended_s, result, first_token_s=first_s, prompt_tokens=100)

    met_nobody, met_it, met_later = request(0.0, 0.1, 1.0), request(0.5, 0.9, 2.0), request(5.0, 5.25, 9.0)
    overtaken, failed = request(20.0, 20.9, 21.0), request(20.5, None, 20.6)
    found = list(calibrate.alone([overtaken, met_later, met_it, met_nobody, failed]))
    assert found == [(100, pytest.approx(0.1)), (100, pytest.approx(0.25))]


async def test_a_wrong_token_is_told_before_the_load_begins(engine):
    with pytest.raises(Unreachable, match="must be the engine's own admin port"):
        async with calibrate.Collector(engine.url, "wrong"):
            pass


async def test_too_little_load_gives_no_model(engine):
    engine.per_look = 0
    async with calibrate.Collector(engine.url, "secret") as collector:
        pass
    with pytest.raises(CliError, match="give more load"):
        collector.fit([])
