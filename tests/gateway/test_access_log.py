"""What the gateway writes down of a request: enough to simulate its load, and nothing of what was said."""

import logging
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capstan_api.access import Access


@pytest.fixture
def accesses(caplog):
    caplog.set_level(logging.INFO, "capstan_gateway.access")

    def found() -> list[Access]:
        lines = [r.getMessage() for r in caplog.records if r.name == "capstan_gateway.access"]
        return [access for access in map(Access.found, lines) if access is not None]

    return found


async def test_a_completion_is_logged_with_lengths_and_latencies(door, start_replica, accesses, caplog):
    await door.put(await start_replica("a"))
    before = time.time()
    headers = {"x-capstan-slo-class": "bulk"}
    async with door.chat(
        "a secret question", headers=headers, stream=True, stream_options={"include_usage": True}
    ) as response:
        await response.read()
    await door.until(lambda state: state["open"] == 0)
    (access,) = accesses()
    assert before - 0.01 <= access.arrived_at <= time.time()
    assert (access.slo_class, access.prompt_tokens, access.output_tokens) == ("batch", 7, 3)
    assert access.outcome == "completed"
    assert access.ttft_s is not None
    assert access.tpot_s is not None
    assert "secret" not in caplog.text


async def test_a_request_that_nobody_served_is_logged_without_tokens(start_gateway, accesses):
    door = await start_gateway(max_held_requests=0)
    async with door.chat() as response:
        assert response.status in (429, 503)
    await door.until(lambda state: state["open"] == 0)
    (access,) = accesses()
    assert (access.outcome, access.output_tokens, access.ttft_s) == ("rejected", 0, None)


@given(
    st.builds(
        Access,
        arrived_at=st.integers(0, 4 * 10**12).map(lambda ms: ms / 1000),
        slo_class=st.from_regex(r"[a-z0-9]([a-z0-9-]{0,20}[a-z0-9])?", fullmatch=True),
        prompt_tokens=st.integers(0, 10**9),
        output_tokens=st.integers(0, 10**9),
        ttft_s=st.none() | st.integers(0, 10**7).map(lambda tenths: tenths / 10_000),
        tpot_s=st.none() | st.integers(0, 10**7).map(lambda tenths: tenths / 10_000),
        outcome=st.sampled_from(["completed", "failed", "truncated"]),
    )
)
def test_a_line_reads_back_as_it_was_written(access):
    found = Access.found(f"2026-01-01 00:00:00,000 INFO capstan_gateway.access: {access.line()}\n")
    assert found is not None
    latencies = {"ttft_s": None, "tpot_s": None}
    assert found._replace(**latencies) == access._replace(**latencies)
    assert (found.ttft_s, found.tpot_s) == (pytest.approx(access.ttft_s), pytest.approx(access.tpot_s))


def test_other_lines_tell_of_no_request():
    assert Access.found("INFO capstan_gateway.gateway: listening on port 8000") is None
