"""Traces and arrivals: real rows stay real, and time is only ever bent, never torn."""

import gzip
import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capstan_cli import traffic
from capstan_cli.errors import InputError
from capstan_cli.traffic import Arrival, ClassMix, Speed

TRACE = ["t,prompt,output", "10.0,100,20", "10.5,4083,1", "12.0,7,300"]


def test_a_trace_starts_at_zero_and_keeps_its_gaps():
    assert traffic.parse(TRACE) == [Arrival(0, 100, 20), Arrival(0.5, 4083, 1), Arrival(2.0, 7, 300)]


def test_extra_columns_and_comments_are_passed_over():
    lines = ["# licence", "t,prompt,output,session", "1,2,3,9"]
    assert traffic.parse(lines) == [Arrival(0, 2, 3)]


def test_a_gzipped_trace_reads_like_a_plain_one(tmp_path):
    plain, packed = tmp_path / "a.csv", tmp_path / "a.csv.gz"
    plain.write_text("\n".join(TRACE))
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    assert traffic.read(plain) == traffic.read(packed)


@pytest.mark.parametrize(
    ("lines", "complaint"),
    [
        (["t,prompt"], "output"),
        (["t,prompt,output"], "holds no request"),
        (["t,prompt,output", "1,2,x"], "request 1"),
        (["t,prompt,output", "1,2"], "request 1"),
        (["t,prompt,output", "1,0,5"], "at least one token"),
        (["t,prompt,output", "nan,1,5"], "finite"),
        (["t,prompt,output", "2,1,1", "1,1,1"], "request 2"),
    ],
)
def test_a_broken_trace_is_refused_with_the_line(lines, complaint):
    with pytest.raises(InputError, match=complaint):
        traffic.parse(lines)


def test_a_missing_or_damaged_file_is_an_input_error(tmp_path):
    damaged = tmp_path / "x.csv.gz"
    damaged.write_bytes(b"not gzip")
    for path in (tmp_path / "absent.csv", damaged):
        with pytest.raises(InputError, match=path.name):
            traffic.read(path)


def test_a_window_is_cut_in_trace_time_and_starts_at_zero():
    arrivals = [Arrival(float(t), 1, 1) for t in range(10)]
    assert [a.at_s for a in traffic.window(arrivals, "3:6")] == [0, 1, 2]
    assert len(traffic.window(arrivals, "8:")) == 2
    for bad in ("6:3", "5", "a:b", "100:200"):
        with pytest.raises(InputError, match="--window"):
            traffic.window(arrivals, bad)


def test_caps_cut_lengths_and_leave_times():
    assert traffic.capped([Arrival(1.0, 500, 90), Arrival(2.0, 5, 9)], 100, None) == [
        Arrival(1.0, 100, 90),
        Arrival(2.0, 5, 9),
    ]


def test_clones_multiply_requests_and_keep_the_first_copy():
    arrivals = [Arrival(float(t), t + 1, 1) for t in range(20)]
    cloned = traffic.cloned(arrivals, 3, seed=1)
    assert len(cloned) == 60
    assert set(arrivals) <= set(cloned)
    assert [a.at_s for a in cloned] == sorted(a.at_s for a in cloned)
    assert cloned == traffic.cloned(arrivals, 3, seed=1)


def test_a_constant_speed_divides_time():
    assert Speed.parse("20").replay_s(100) == 5


def test_a_course_slows_down_and_speeds_up_where_it_says():
    # 10 s at 1, then 10 s at 5: trace seconds 0..10 and 15..65 (a second of ramp between them covers 3).
    speed = Speed.parse("0:1,10:1,11:5,21:5")
    assert speed.replay_s(5) == pytest.approx(5)
    assert speed.replay_s(13) == pytest.approx(11)
    assert speed.replay_s(63) == pytest.approx(21)
    assert speed.replay_s(73) == pytest.approx(23)


@pytest.mark.parametrize(
    "text", ["", "x", "0", "-1", "inf", "nan", "0:1,0:2", "5:1,3:1", "0:1,4:0", "1:2:3", "-1:1,2:2"]
)
def test_a_course_that_would_tear_time_is_refused(text):
    with pytest.raises(InputError, match="--speedup"):
        Speed.parse(text)


def test_a_speed_prints_as_it_was_written():
    for text in ("20", "0:8,60:8,75:30"):
        assert str(Speed.parse(text)) == text


knots = st.lists(st.tuples(st.floats(0.1, 50), st.floats(0.05, 100)), min_size=1, max_size=6).map(
    lambda steps: tuple(zip(itertools.accumulate(s for s, _ in steps), (v for _, v in steps), strict=True))
)


@given(knots, st.lists(st.floats(0, 5000), min_size=2, max_size=50))
def test_replaying_keeps_the_order_of_requests_whatever_the_course(course, times):
    speed = Speed(((0.0, course[0][1]), *course))
    replayed = [speed.replay_s(t) for t in sorted(times)]
    assert all(a <= b + 1e-6 for a, b in itertools.pairwise(replayed))


@given(knots, st.floats(0, 2000))
def test_replay_time_inverts_the_integral_of_the_speed(course, trace_s):
    speed = Speed(((0.0, course[0][1]), *course))
    assert _integral(speed, speed.replay_s(trace_s)) == pytest.approx(trace_s, rel=1e-6, abs=1e-6)


def _integral(speed, stop):
    total = 0.0
    for (a, v0), (b, v1) in itertools.pairwise(speed.knots):
        end = min(max(stop, a), b)
        v_end = v0 + (v1 - v0) * (end - a) / (b - a)
        total += (v0 + v_end) / 2 * (end - a)
    last, v = speed.knots[-1]
    return total + max(stop - last, 0.0) * v


def test_poisson_load_has_its_rate_and_repeats_with_its_seed():
    arrivals = traffic.poisson(50, 100, 10, 5, seed=3)
    assert len(arrivals) == pytest.approx(5000, rel=0.05)
    assert arrivals == traffic.poisson(50, 100, 10, 5, seed=3)
    assert arrivals[-1].at_s < 100


def test_a_class_mix_is_drawn_by_its_shares():
    mix = ClassMix.parse("interactive=3,batch=1")
    classes = [a.slo_class for a in mix.assigned([Arrival(0, 1, 1)] * 4000, seed=0)]
    assert classes.count("interactive") == pytest.approx(3000, rel=0.05)
    assert set(classes) == {"interactive", "batch"}


@pytest.mark.parametrize("text", ["interactive", "a=-1", "a=0", "=1", "a=x", "a=nan", ","])
def test_a_broken_class_mix_is_refused(text):
    with pytest.raises(InputError, match="--slo-class-mix"):
        ClassMix.parse(text)


@given(st.integers(1, 300), st.floats(0.0, 1.0))
def test_thinning_keeps_an_even_share_of_real_requests(number, share):
    arrivals = [Arrival(float(i), i + 1, 1) for i in range(number)]
    kept = traffic.thinned(arrivals, share)
    assert abs(len(kept) - number * share) <= 1
    assert [a for a in arrivals if a in kept] == kept
    # Even: no stretch of the trace gets more than one request beyond its share.
    half = traffic.thinned(arrivals, share)[: len(kept) // 2]
    assert not half or abs(half[-1].at_s - kept[-1].at_s / 2) <= 2 / share


def test_a_whole_share_keeps_everything():
    arrivals = [Arrival(float(i), 1, 1) for i in range(97)]
    assert traffic.thinned(arrivals, 1.0) == arrivals


def test_the_peak_is_the_busiest_window_and_not_the_mean():
    quiet = [Arrival(float(i), 1, 1) for i in range(60)]
    burst = [Arrival(60 + i / 10, 1, 1) for i in range(50)]
    assert traffic.peak_rate(quiet, 10) == 1.0
    assert traffic.peak_rate([*quiet, *burst], 5) == 10.0
