"""An engine refuses what cannot fit before it reads a weight, and names what would."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from capstan_api.footprint import Demand
from capstan_engine.errors import Infeasible
from capstan_engine.models.decoder import tensors
from capstan_engine.models.families import read_spec
from capstan_engine.models.spec import ModelSpec
from capstan_engine.models.weights import Checkpoint
from capstan_engine.quant.choose import choose
from capstan_engine.quant.storage import STORAGES
from capstan_engine.runner import load, memory
from capstan_engine.runner.machine import available_memory, num_threads
from tiny_models import Case, load_runner, write_checkpoint

MODEL = Path(__file__).parents[2] / "runtime_image" / "models" / "capstan-tiny"
SPEC = read_spec(MODEL)
SHAPES = tensors(SPEC, choose({}))
MIB = 1 << 20
PROBE = """
import re, sys
from pathlib import Path
from capstan_api.engine_args import Precision, Quantization
from capstan_api.footprint import Demand
from capstan_engine.runner.load import build_runner
from capstan_engine.runner.machine import give_back_freed_memory

def anonymous():
    give_back_freed_memory()
    return int(re.search(r"RssAnon:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) << 10

def build(directory, kv_cache_bytes, quantization):
    return build_runner(Path(directory), precision=Precision.BFLOAT16, quantization=quantization,
                        kv_cache_bytes=kv_cache_bytes, block_size=16, max_model_len=64, num_threads=1)

for quantization in map(Quantization, sys.argv[3:]):
    build(sys.argv[1], 1 << 20, quantization)  # what the libraries take when first used is not the model's
    before = anonymous()
    runner = build(sys.argv[2], 128 << 20, quantization)
    need = runner.figures.footprint(Demand(128 << 20, 16, 64, 0, 0))
    print(quantization, need.weights + need.kv_cache, anonymous() - before)
    del runner
"""


def held(of: ModelSpec, itemsize: int, *, positions: int = 2048) -> int:
    """Bytes of weights, as the figures say."""
    demand = Demand(64 * MIB, 16, max_model_len=positions, max_batched_tokens=512, max_sequences=16)
    return memory.figures(of, STORAGES["None"], memory.HABITS["cpu"], itemsize=itemsize).footprint(demand).weights


def test_weights_are_those_of_the_checkpoint_and_the_second_copy_of_a_tied_embedding() -> None:
    checkpoint = Checkpoint(MODEL)
    stored = sum(checkpoint.read(name, torch.float32, "cpu").nbytes for name in SHAPES)
    tables = 2 * 2048 * SPEC.head_dim * 4
    copied = SPEC.vocab_size * SPEC.hidden_size * 4
    assert SPEC.tie_word_embeddings
    assert held(SPEC, 4) == stored + copied + tables


def test_an_untied_model_holds_its_embedding_once() -> None:
    assert held(replace(SPEC, tie_word_embeddings=False), 2) == held(SPEC, 2)


def test_what_does_not_fit_is_called_infeasible() -> None:
    figures = memory.figures(SPEC, STORAGES["None"], memory.HABITS["cpu"], itemsize=4)
    demand = Demand(64 * MIB, 16, max_model_len=2048, max_batched_tokens=512, max_sequences=16)
    need = figures.footprint(demand).total
    memory.check(figures, demand, need)
    with pytest.raises(Infeasible, match=r"^infeasible: .* set resources\.memoryMebibytes to at least"):
        memory.check(figures, demand, need - 1)


def test_nothing_is_read_of_a_model_that_does_not_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # A model directory without weights: the refusal comes before anybody looks for them.
    for name in ("config.json", "generation_config.json"):
        (tmp_path / name).write_bytes((MODEL / name).read_bytes())
    monkeypatch.setattr(load.machine, "available_memory", lambda: 256 * MIB)
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


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, 8),
        ({"sys/fs/cgroup/cpu.max": "max 100000"}, 8),
        ({"sys/fs/cgroup/cpu.max": "350000 100000"}, 3),
        ({"sys/fs/cgroup/cpu.max": "40000 100000"}, 1),
        ({"sys/fs/cgroup/cpu.max": "max 100000", "sys/fs/cgroup/pods/a/cpu.max": "200000 100000"}, 2),
        ({"sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1", "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000"}, 8),
        ({"sys/fs/cgroup/cpu/cpu.cfs_quota_us": "500000", "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000"}, 5),
    ],
)
def test_threads_follow_the_cpu_quota(
    files: dict[str, str], expected: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(8)), raising=False)
    for name, text in ({"proc/self/cgroup": "0::/pods/a"} | files).items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text + "\n")
    assert num_threads(None, tmp_path) == expected
    assert num_threads(2, tmp_path) == min(2, expected)


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


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/status")
def test_what_is_allocated_is_what_was_predicted(tmp_path: Path) -> None:
    """Weights and KV cache, as the system counts them, in a process of its own."""
    directory = write_checkpoint(
        tmp_path,
        Case("Llama", {"hidden_size": 512, "intermediate_size": 1536, "vocab_size": 8000, "num_hidden_layers": 8}),
    )
    done = subprocess.run(
        [sys.executable, "-c", PROBE, str(MODEL), str(directory), "None", "Int8Dynamic", "Int4Group32"],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    rows = [line.split() for line in done.stdout.splitlines()]
    assert [name for name, *_ in rows] == ["None", "Int8Dynamic", "Int4Group32"]
    for name, predicted, allocated in rows:
        assert int(predicted) > 140 * MIB
        assert abs(int(allocated) / int(predicted) - 1) < 0.03, name
