"""An engine refuses what cannot fit before it reads a weight, and names what would."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from capstan_engine import quant
from capstan_engine.errors import Infeasible
from capstan_engine.models.decoder import tensors
from capstan_engine.models.families import read_spec
from capstan_engine.models.weights import Checkpoint
from capstan_engine.runner import load, memory
from capstan_engine.runner.machine import available_memory
from tiny_models import load_runner

MODEL = Path(__file__).parents[2] / "runtime_image" / "models" / "capstan-tiny"
SPEC = read_spec(MODEL)
SHAPES = tensors(SPEC, quant.choose({}))
MIB = 1 << 20


def footprint(**changes: int) -> memory.Footprint:
    settings = {
        "itemsize": 4,
        "kv_cache_bytes": 64 * MIB,
        "max_model_len": 2048,
        "max_batched_tokens": 512,
        "max_sequences": 16,
    }
    return memory.footprint(SPEC, SHAPES, **(settings | changes))


def test_weights_are_those_of_the_checkpoint_and_the_second_copy_of_a_tied_embedding() -> None:
    checkpoint = Checkpoint(MODEL)
    stored = sum(checkpoint.read(name, torch.float32, "cpu").nbytes for name in SHAPES)
    tables = 2 * 2048 * SPEC.head_dim * 4
    copied = SPEC.vocab_size * SPEC.hidden_size * 4
    assert SPEC.tie_word_embeddings
    assert footprint().weights == stored + copied + tables


def test_an_untied_model_holds_its_embedding_once() -> None:
    untied = replace(SPEC, tie_word_embeddings=False)
    settings = {"kv_cache_bytes": MIB, "max_model_len": 16, "max_batched_tokens": 16, "max_sequences": 1}
    one = memory.footprint(untied, tensors(untied, quant.choose({})), itemsize=2, **settings)
    other = memory.footprint(SPEC, SHAPES, itemsize=2, **settings)
    assert one.weights == other.weights


@given(
    available=st.integers(0, 4 << 30),
    kv_cache_mib=st.integers(1, 2048),
    tokens=st.integers(1, 8192),
    sequences=st.integers(1, 512),
)
def test_every_remedy_that_a_refusal_names_is_one(
    available: int, kv_cache_mib: int, tokens: int, sequences: int
) -> None:
    def needed(num_bytes: int) -> memory.Footprint:
        return footprint(kv_cache_bytes=num_bytes, max_batched_tokens=tokens, max_sequences=sequences)

    def check(mib: int, available_bytes: int) -> None:
        memory.check(needed, mib * MIB, available_bytes, smallest_kv_cache_bytes=MIB)

    try:
        check(kv_cache_mib, available)
    except Infeasible as refusal:
        message = str(refusal)
    else:
        assert needed(kv_cache_mib * MIB).total <= available
        return
    assert message.startswith("infeasible: ")
    more = re.search(r"resources\.memoryMebibytes to at least (\d+)", message)
    assert more is not None
    check(kv_cache_mib, int(more[1]) * MIB)
    with pytest.raises(Infeasible):
        check(kv_cache_mib, (int(more[1]) - 1) * MIB)
    less = re.search(r"engine\.kvCache\.memoryMebibytes to at most (\d+)", message)
    if less is not None:
        check(int(less[1]), available)
    with pytest.raises(Infeasible):
        check(1 if less is None else int(less[1]) + 1, available)


def test_a_smaller_cache_is_no_remedy_where_one_request_would_not_fit() -> None:
    size = 64 * MIB
    with pytest.raises(Infeasible) as refusal:
        memory.check(lambda kv: footprint(kv_cache_bytes=kv), size, footprint().total - 1, smallest_kv_cache_bytes=size)
    assert "kvCache" not in str(refusal.value)


def test_nothing_is_read_of_a_model_that_does_not_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # A model directory without weights: the refusal comes before anybody looks for them.
    for name in ("config.json", "generation_config.json"):
        (tmp_path / name).write_bytes((MODEL / name).read_bytes())
    monkeypatch.setattr(load, "available_memory", lambda: 256 * MIB)
    with pytest.raises(Infeasible, match=r"and there are 256; set resources\.memoryMebibytes"):
        load_runner(tmp_path)


@pytest.mark.parametrize(
    ("files", "expected_mib"),
    [
        ({}, 8000),
        ({"sys/fs/cgroup/memory.max": "max"}, 8000),
        ({"sys/fs/cgroup/memory.max": str(512 * MIB)}, 512),
        ({"sys/fs/cgroup/memory/memory.limit_in_bytes": str(600 * MIB)}, 600),
        ({"sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712"}, 8000),
        ({"sys/fs/cgroup/memory/pods/a/memory.limit_in_bytes": str(700 * MIB)}, 700),
        ({"sys/fs/cgroup/pods/a/memory.max": str(700 * MIB), "sys/fs/cgroup/memory.max": str(900 * MIB)}, 700),
    ],
    ids=["none", "v2-unlimited", "v2", "v1", "v1-unlimited", "v1-nested", "v2-nested"],
)
def test_the_limit_of_the_container_counts_in_both_versions_of_control_groups(
    tmp_path: Path, files: dict[str, str], expected_mib: int
) -> None:
    for name, text in {
        "proc/meminfo": f"MemTotal: 16000000 kB\nMemAvailable: {8000 * 1024} kB\n",
        "proc/self/cgroup": "4:memory:/pods/a\n0::/pods/a\n",
        **files,
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text + "\n")
    assert available_memory(tmp_path) == expected_mib * MIB


def test_loading_tells_each_tensor_and_ends_with_all_of_them(tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    load.build_runner(
        MODEL,
        precision=load.Precision.FLOAT32,
        kv_cache_bytes=32 * MIB,
        block_size=16,
        max_model_len=64,
        num_threads=1,
        progress=lambda done, total: told.append((done, total)),
    )
    assert len(told) == len(SHAPES)
    assert [done for done, _ in told] == sorted({done for done, _ in told})
    done, total = told[-1]
    assert done == total == sum(torch.Size(shape).numel() for shape in SHAPES.values()) * 4
