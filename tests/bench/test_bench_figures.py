"""What the benches count and keep: the share of a time that is covered, the weights of a model, rows of a file."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from ablation import PARTS
from checkpoints import SHIPPED
from hypothesis import given
from hypothesis import strategies as st
from idle import activity, busy_share
from peers_continuous import num_generated
from results import Case, Row, comparison, keep, measure
from safetensors import safe_open
from torch.autograd import DeviceType

from capstan_engine.models.families import read_spec
from engine import num_weights


@pytest.mark.parametrize(
    ("spans", "share"),
    [
        ([(3, 7)], 1.0),
        ([(0, 1), (1, 4)], 1.0),
        ([(6, 8), (0, 2)], 0.5),
        ([(0, 10), (2, 3), (4, 5)], 1.0),
        ([(0, 4), (2, 5), (8, 10)], 0.7),
    ],
    ids=["one", "seamless", "gap", "nested", "overlap"],
)
def test_overlaps_count_once_and_gaps_not(spans: list[tuple[float, float]], share: float) -> None:
    assert busy_share(spans) == pytest.approx(share)


@given(st.lists(st.tuples(st.integers(0, 60), st.integers(1, 9)), min_size=1, max_size=12))
def test_the_covered_share_is_that_of_the_moments_inside_a_span(starts: list[tuple[int, int]]) -> None:
    spans = [(start, start + length) for start, length in starts]
    first, last = min(start for start, _ in spans), max(end for _, end in spans)
    inside = sum(any(start <= moment < end for start, end in spans) for moment in range(first, last))
    assert busy_share(spans) == pytest.approx(inside / (last - first))


def test_activity_is_that_of_the_call() -> None:
    square = torch.ones(64, 64)
    spans = activity(lambda: [square @ square for _ in range(3)], DeviceType.CPU)
    assert len(spans) >= 3
    assert 0 < busy_share(spans) <= 1


def test_the_weights_of_a_token_are_those_of_the_checkpoint_that_it_is_multiplied_with() -> None:
    with safe_open(SHIPPED / "model.safetensors", framework="pt") as file:
        stored = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118 - no mapping
    matrices = {name: shape[0] * shape[1] for name, shape in stored.items() if len(shape) == 2}
    spec = read_spec(SHIPPED)
    # The embedding is the head as well, and this is what is multiplied.
    assert spec.tie_word_embeddings
    assert num_weights(spec, with_head=True) == sum(matrices.values())
    del matrices["model.embed_tokens.weight"]
    assert num_weights(spec, with_head=False) == sum(matrices.values())


def test_a_bench_replaces_its_own_rows_and_keeps_the_others(tmp_path: Path) -> None:
    path = tmp_path / "new" / "cpu.json"
    old = [comparison(f"case {n}", n, "tok/s", peer, 2, n / 2) for n in (1, 2) for peer in ("a", "b")]
    keep(path, old)
    keep(path, [comparison("case 2", 8, "tok/s", "b", 2, 4)])
    rows = json.loads(path.read_text())
    assert [(row["case"], row["peer"], row["ratio"]) for row in rows] == [
        ("case 1", "a", 0.5),
        ("case 1", "b", 0.5),
        ("case 2", "a", 1),
        ("case 2", "b", 4),
    ]
    assert rows[0].keys() == {"case", "ours", "unit", "peer", "peer_value", "ratio"}


def test_a_case_that_fails_is_named_and_costs_no_other_its_rows(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "gpu.json"

    def breaking() -> Iterator[Row]:
        yield comparison("before", 1, "ms", "copy", 2, 2)
        # What is there is in the file at once, whatever comes after it.
        assert len(json.loads(path.read_text())) == 1
        raise RuntimeError("an illegal memory access was encountered")

    cases = [Case("breaking", breaking), Case("sound", lambda: [comparison("after", 3, "ms", "copy", 6, 2)])]
    assert measure(cases, path, prefix="8b ") == ["8b breaking"]
    assert [row["case"] for row in json.loads(path.read_text())] == ["8b before", "8b after"]
    assert "FAILED 8b breaking\nTraceback" in (told := capsys.readouterr().out)
    assert "RuntimeError: an illegal memory access" in told


@pytest.mark.parametrize(
    ("ended", "num"),
    [([2, 4, 9], 15), ([2, 4, 0], 10), ([2, 0, 0], 6)],
    ids=["all", "but the longest", "the shortest"],
)
def test_requests_whose_time_was_over_count_as_far_as_the_longest_that_ended(ended: list[int], num: int) -> None:
    assert num_generated([[7] * length for length in ended], [2, 4, 9]) == num


@pytest.mark.parametrize("part", [part for part, without in PARTS.items() if without])
def test_what_the_ablation_leaves_out_is_there(part: str) -> None:
    for owner, name, _ in PARTS[part]:
        assert hasattr(owner, name)
