"""A trace is thinned to what the machine serves, and to nothing else."""

import pytest

from capstan_cli import endpoint, fit, generator, traffic
from capstan_cli.errors import CliError
from capstan_cli.load import TraceLoad
from capstan_cli.replay import Replay
from capstan_cli.traffic import Arrival

STEADY = [Arrival(i / 4, 20, 2) for i in range(400)]


def test_the_kept_peak_is_the_wanted_multiple_of_what_is_served():
    kept, seen = fit.fitted(STEADY, rate=1.0, peak_load=2.0)
    assert traffic.peak_rate(kept) == pytest.approx(2.0, rel=0.1)
    assert seen.kept_share == pytest.approx(0.5)


def test_a_trace_that_is_too_thin_is_kept_whole():
    kept, seen = fit.fitted(STEADY, rate=100.0, peak_load=2.0)
    assert kept == STEADY
    assert seen.kept_share == 1.0


def test_a_hopelessly_slow_machine_is_told_so():
    with pytest.raises(CliError, match="too slow"):
        fit.fitted(STEADY[:3], rate=0.001, peak_load=0.1)


async def test_the_rate_is_measured_on_requests_like_those_of_the_trace(fake):
    async with endpoint.session(30) as client:
        target = await generator.connect(client, fake.base)
        rate = await fit.served_rate(client, target, STEADY)
    assert rate > 0
    assert len(fake.bodies) == 16
    assert {body["max_tokens"] for body in fake.bodies} == {2}


async def test_the_report_says_what_was_measured_and_kept(fake, at_second, tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("t,prompt,output\n" + "".join(f"{i / 1000},20,2\n" for i in range(64)))
    replay = Replay(TraceLoad(path, peak_load=1.0), settle_s=5, say=lambda _: None)
    assert replay.facts()["fit"] is None
    replay.see(at_second(0, model="fake", endpoint=fake.base))
    replayed = await replay.run()
    assert replay.facts()["fit"]["kept_share"] > 0
    assert len(replayed.outcomes) == len(replay.arrivals)
