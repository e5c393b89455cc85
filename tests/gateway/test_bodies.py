"""What all bodies hold together: bounded whatever comes, given back, and never all of it taken from short ones."""

import asyncio
import io
import json
from contextlib import ExitStack, suppress

from hypothesis import given
from hypothesis import strategies as st

from capstan_gateway.bodies import MAX_TOTAL_BYTES, Bodies
from capstan_gateway.errors import TooManyBytes
from capstan_gateway.incoming import MAX_BODY_BYTES


def fits(bodies, num_bytes):
    with bodies.one() as body, suppress(TooManyBytes):
        body.grow(num_bytes)
        return True
    return False


@given(st.lists(st.lists(st.integers(1, MAX_BODY_BYTES), min_size=1, max_size=4), max_size=100))
def test_together_they_never_hold_more_than_they_may_and_everything_comes_back(crowd):
    bodies = Bodies()
    with ExitStack() as open_requests:
        accounts = []
        for parts in crowd:
            accounts.append(open_requests.enter_context(bodies.one()))
            with suppress(TooManyBytes):
                for part in parts:
                    accounts[-1].grow(part)
            assert sum(account.size for account in accounts) < MAX_TOTAL_BYTES
            assert fits(bodies, 1) or sum(account.size for account in accounts) > 0.99 * MAX_TOTAL_BYTES
    assert fits(bodies, MAX_TOTAL_BYTES // 2)


async def test_a_crowd_of_long_bodies_is_refused_in_time_and_short_ones_go_on(door, start_replica):
    long = "x" * (MAX_BODY_BYTES - 4096)

    async def ask(prompt):
        document = {"model": "tiny", "messages": [{"role": "user", "content": prompt}]}
        body, headers = io.BytesIO(json.dumps(document).encode()), {"content-type": "application/json"}
        async with door.session.post(f"{door.url}/v1/chat/completions", data=body, headers=headers) as response:
            return response.status, await response.read(), response.headers

    crowd = []
    for count in range(1, 8):
        crowd.append(asyncio.create_task(ask(long)))
        await door.until(lambda state, count=count: state["held"] == count)
    status, body, headers = await ask(long)
    assert (status, json.loads(body)["error"]["code"]) == (429, "too_many_bytes")
    assert "retry-after" in headers
    short = asyncio.create_task(ask("a question"))
    await door.until(lambda state: state["held"] == 8)
    assert (await door.metrics())["responses_total{outcome=rejected,slo_class=interactive}"] == 1
    await door.put(await start_replica("r1"))
    assert [status for status, _, _ in await asyncio.gather(*crowd, short)] == [200] * 8
    assert (await ask(long))[0] == 200
