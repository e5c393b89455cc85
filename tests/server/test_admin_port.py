"""Limits are versioned, leased and inside the envelope; steps are told in order."""

import asyncio
import csv
from pathlib import Path
from typing import Any

import pytest
from scripted_client import ScriptedClient, idle_state
from serving import Served

from capstan_api.limits import BatchLimits, Envelope, LimitsPatch
from capstan_engine.messages import StepSample, Update
from capstan_engine.server.limits import LeasedLimits
from capstan_engine.server.step_log import COLUMNS, StepLog, StepRing

LIMITS = "/admin/limits"


async def patch(served: Served, version: str | None, **changes: Any) -> Any:
    headers = {} if version is None else {"if-match": version}
    return await served.admin.patch(LIMITS, json=changes, headers=headers)


async def test_a_change_names_the_version_it_is_based_on(served: Served, engine: ScriptedClient) -> None:
    first = await served.admin.get(LIMITS)
    assert first.headers["etag"] == '"1"'
    assert (await patch(served, None, max_sequences=4)).status_code == 428
    changed = await patch(served, first.headers["etag"], max_sequences=4, reason="TPOT above target")
    assert changed.status_code == 200
    assert changed.json()["limits"] == {"max_sequences": 4, "max_batched_tokens": 64}
    assert changed.json()["reason"] == "TPOT above target"
    assert changed.json()["lease_remaining_seconds"] == pytest.approx(60, abs=5)
    stale = await patch(served, first.headers["etag"], max_sequences=5)
    assert stale.status_code == 412
    assert stale.headers["etag"] == changed.headers["etag"] == '"2"'
    assert (await patch(served, "*", max_sequences=6)).status_code == 200
    assert engine.applied == [
        BatchLimits(max_sequences=4, max_batched_tokens=64),
        BatchLimits(max_sequences=6, max_batched_tokens=64),
    ]


@pytest.mark.parametrize(
    ("changes", "param", "bounds"),
    [
        ({"max_sequences": 9}, "max_sequences", "2..8"),
        ({"max_sequences": 1}, "max_sequences", "2..8"),
        ({"max_batched_tokens": 65}, "max_batched_tokens", "16..64"),
        ({"max_sequences": 4, "max_batched_tokens": 15}, "max_batched_tokens", "16..64"),
    ],
)
async def test_a_limit_outside_the_envelope_names_the_bound(
    served: Served, engine: ScriptedClient, changes: dict[str, int], param: str, bounds: str
) -> None:
    answer = await patch(served, '"1"', **changes)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == param
    assert bounds in answer.json()["error"]["message"]
    assert not engine.applied
    assert (await served.admin.get(LIMITS)).json()["version"] == 1


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"max_sequences": "4"}, "max_sequences"),
        ({"max_sequences": True}, "max_sequences"),
        ({"max_sequences": 10**30}, "max_sequences"),
        ({"lease_seconds": 0}, "lease_seconds"),
        ({"lease_seconds": 3601}, "lease_seconds"),
        ({"reason": "x" * 501}, "reason"),
        ({"max_seqs": 4}, "max_seqs"),
    ],
)
async def test_a_senseless_change_names_the_field(served: Served, changes: dict[str, Any], param: str) -> None:
    answer = await patch(served, '"1"', **changes)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)


@pytest.mark.parametrize("version", ['"x"', "1, 2", "", '"-1"'])
async def test_a_senseless_version_is_refused(served: Served, version: str) -> None:
    assert (await patch(served, version, max_sequences=4)).status_code == 400


async def test_limits_that_nobody_renews_return_to_the_defaults() -> None:
    envelope = Envelope(min_sequences=1, max_sequences=8, min_batched_tokens=8, max_batched_tokens=64)
    applied: list[BatchLimits] = []
    causes: list[str] = []
    expired = asyncio.Event()

    def changed(cause: str) -> None:
        causes.append(cause)
        if cause == "lease_expired":
            expired.set()

    limits = LeasedLimits(envelope, applied.append, changed)
    limits.patch(LimitsPatch(max_sequences=2, lease_seconds=1), based_on=1)
    assert limits.state().limits.max_sequences == 2
    limits.patch(LimitsPatch(lease_seconds=1), based_on=2)  # a renewal changes nothing and is no change
    assert causes == ["operator"]
    await asyncio.wait_for(expired.wait(), 10)
    state = limits.state()
    assert (state.limits, state.version, state.lease_remaining_seconds) == (envelope.top, 4, None)
    assert applied == [BatchLimits(max_sequences=2, max_batched_tokens=64), envelope.top]


async def test_a_replica_that_drains_keeps_its_limits_though_nobody_can_renew_them(served: Served) -> None:
    answer = await patch(served, '"1"', max_sequences=2, lease_seconds=60)
    assert answer.json()["lease_remaining_seconds"] > 0
    assert (await served.admin.post("/admin/drain")).json()["draining"]
    state = (await served.admin.get(LIMITS)).json()
    assert (state["limits"]["max_sequences"], state["lease_remaining_seconds"]) == (2, None)


def sample(number: int, prefill: int = 0, decodes: int = 1) -> StepSample:
    return StepSample(number, number * 1.0, 0.01 * number, prefill, decodes, 7, 9)


def update(*samples: StepSample) -> Update:
    return Update(outputs=[], steps=list(samples), state=idle_state())


async def test_steps_are_told_once_and_in_order(served: Served, engine: ScriptedClient) -> None:
    for observe in engine.on_update:
        observe(update(*map(sample, range(1, 6))))
    answer = (await served.admin.get("/admin/steps", params={"after": 2, "limit": 2})).json()
    assert answer["steps"] == [[3, 3.0, 0.03, 0, 1, 7, 9], [4, 4.0, 0.04, 0, 1, 7, 9]]
    assert answer["now"] > 0
    assert (await served.admin.get("/admin/steps", params={"after": 5})).json()["steps"] == []
    for bad in ({"after": "x"}, {"after": -1}, {"limit": 0}, {"limit": 5000}):
        assert (await served.admin.get("/admin/steps", params=bad)).status_code == 400


def test_the_ring_forgets_the_oldest() -> None:
    ring = StepRing(size=3)
    ring.on_update(update(*map(sample, range(1, 6))))
    assert [step.number for step in ring.after(0, 10)] == [3, 4, 5]


async def test_the_step_log_is_csv_with_a_header(tmp_path: Path) -> None:
    log = StepLog(tmp_path / "steps.csv")
    flushing = asyncio.create_task(log.keep_flushed())
    await asyncio.sleep(0)
    log.on_update(update(sample(1, prefill=5), sample(2)))
    flushing.cancel()
    await asyncio.gather(flushing, return_exceptions=True)
    rows = list(csv.reader((tmp_path / "steps.csv").read_text().splitlines()))
    assert rows[0] == list(COLUMNS)
    assert rows[1] == ["1", "1.0", "0.01", "5", "1", "7", "9"]
    assert len(rows) == 3


async def test_state_shows_the_core_and_the_front(served: Served) -> None:
    state = (await served.admin.get("/admin/state")).json()
    assert state["blocks_held"] == state["open_requests"] == state["open_sequences"] == 0
    assert (state["ready"], state["draining"], state["phase"]) == (True, False, "ready")
    assert state["startup_seconds"]["load"] == 0.5
    assert state["startup_seconds"]["total"] > 0
