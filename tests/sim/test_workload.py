"""Reading, cutting and superposing traces."""

import gzip

import numpy as np
import pytest

from capstan_api.access import Access
from capstan_sim.errors import SimulationError
from capstan_sim.workload import Workload, read


def trace(tmp_path, text, name="trace.csv"):
    path = tmp_path / name
    path.write_text(text)
    return path


def test_a_gzipped_trace_reads_like_a_plain_one(tmp_path):
    text = "t,prompt,output\n0.5,10,20\n1.25,7,1\n"
    plain = read(trace(tmp_path, text))
    packed = tmp_path / "trace.csv.gz"
    packed.write_bytes(gzip.compress(text.encode()))
    assert plain.arrival.tolist() == read(packed).arrival.tolist() == [0.5, 1.25]
    assert (plain.prompt.tolist(), plain.output.tolist()) == ([10, 7], [20, 1])


def test_cached_tokens_come_from_their_column(tmp_path):
    assert read(trace(tmp_path, "t,prompt,output,session,cached\n0,10,5,a,0\n1,30,5,a,12\n")).cached.tolist() == [0, 12]


def test_without_that_column_a_session_knows_what_was_said_before(tmp_path):
    rows = "0,10,5,a\n1,40,5,b\n2,30,5,a\n3,12,9,a\n"
    assert read(trace(tmp_path, "t,prompt,output,session\n" + rows)).cached.tolist() == [0, 0, 15, 12]


def test_classes_are_named_in_the_trace(tmp_path):
    path = trace(tmp_path, "t,prompt,output,slo_class\n0,1,1,batch\n1,1,1,chat\n")
    assert read(path, ["chat", "batch"]).slo_class.tolist() == [1, 0]
    with pytest.raises(SimulationError, match="'batch' is not declared; known are chat"):
        read(path, ["chat"])


def test_the_log_of_a_gateway_is_a_trace(tmp_path):
    def line(at, name, prompt, output, outcome="completed"):
        access = Access(at, name, prompt, output, 0.1, 0.02, outcome)
        return f"2026-11-21 09:30:00,123 INFO capstan_gateway.access: {access.line()}\n"

    # Written as requests end, which is not the order in which they came.
    text = "INFO capstan_gateway.gateway: listening on port 8000\n" + line(1700000012.5, "batch", 7, 900)
    text += line(1700000010.0, "chat", 30, 4) + line(1700000011.0, "chat", 30, 0, "rejected")
    workload = read(trace(tmp_path, text, "gateway.log"), ["chat", "batch"])
    assert workload.arrival.tolist() == [0.0, 2.5]
    assert (workload.prompt.tolist(), workload.output.tolist()) == ([30, 7], [4, 900])
    assert workload.slo_class.tolist() == [0, 1]


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("t,prompt\n0,1\n", "output is missing"),
        ("", "t is missing"),
        ("t,prompt,output\n", "t is missing"),
        ("t,prompt,output\n0,1\n", "not every row has the 3 columns"),
        ("t,prompt,output\n0,one,1\n", "column prompt"),
        ("t,prompt,output\n0,1,1\nnan,1,1\n", "request 2 has t nan"),
        ("t,prompt,output\n0,-4,1\n", "request 1 has prompt -4"),
        ("t,prompt,output\n0,1e30,1\n", "request 1 has prompt 1e30"),
        ("t,prompt,output\n2,1,1\n1,1,1\n", "request 2 arrives before"),
    ],
)
def test_a_faulty_trace_is_refused_with_the_place_of_the_fault(tmp_path, text, fault):
    with pytest.raises(SimulationError, match=fault):
        read(trace(tmp_path, text))


def test_a_missing_trace_is_named(tmp_path):
    with pytest.raises(SimulationError, match=r"cannot read the trace .*gone\.csv: No such file"):
        read(tmp_path / "gone.csv")


def test_a_window_counts_its_time_from_its_start():
    workload = Workload.of([0.0, 10.0, 20.0, 30.0], [1, 2, 3, 4], [1] * 4)
    cut = workload.window(10.0, 30.0)
    assert (cut.arrival.tolist(), cut.prompt.tolist()) == ([0.0, 10.0], [2, 3])
    with pytest.raises(SimulationError, match="window 40:50"):
        workload.window(40.0, 50.0)


def test_long_prompts_are_left_out_not_shortened():
    workload = Workload.of([0.0, 1.0, 2.0], [100, 5, 50], [1] * 3)
    assert workload.with_prompts_up_to(50).prompt.tolist() == [5, 50]
    with pytest.raises(SimulationError, match="at most 4 tokens"):
        workload.with_prompts_up_to(4)


def test_clones_are_shifted_one_by_one_and_the_first_copy_stays():
    workload = Workload.of(np.arange(1000.0), np.arange(1, 1001), [3] * 1000)
    three = workload.cloned(3, seed=0)
    rng = np.random.default_rng(0)
    second, third = rng.exponential(5.0, 1000), rng.exponential(5.0, 1000)
    expected = np.sort(np.concatenate([workload.arrival, workload.arrival + second, workload.arrival + third]))
    assert three.arrival == pytest.approx(expected)
    assert np.bincount(three.prompt)[1:].tolist() == [3] * 1000
    assert workload.cloned(3, seed=1).arrival.tolist() != three.arrival.tolist()
    assert workload.cloned(1, seed=0).arrival.tolist() == workload.arrival.tolist()


def test_drawn_classes_have_their_shares():
    workload = Workload.of(np.arange(20_000.0), [1] * 20_000, [1] * 20_000).with_classes([3.0, 1.0], seed=4)
    assert (workload.slo_class == 1).mean() == pytest.approx(0.25, abs=0.01)
