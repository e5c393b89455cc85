"""An engine refuses what cannot fit before it reads a weight, and names what would."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from capstan_api.engine_args import Quantization
from capstan_api.footprint import Demand
from capstan_engine.errors import Infeasible
from capstan_engine.models.families import read_spec
from capstan_engine.models.loading import tensors
from capstan_engine.models.spec import ModelSpec
from capstan_engine.models.weights import Checkpoint
from capstan_engine.pieces import most_pieces
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
import gc, itertools, re, sys
from pathlib import Path
from capstan_api.engine_args import Precision, Quantization
from capstan_api.footprint import Demand
from capstan_engine.runner.load import build_runner
from capstan_engine.runner.machine import give_back_freed_memory

KV_CACHE_BYTES = 8 << 20

def told(line):
    status = Path("/proc/self/status").read_text()
    return int(re.search(line + r":\\s+(\\d+)", status)[1]) << 10

def anonymous():
    gc.collect()
    give_back_freed_memory()
    return told("RssAnon")

def build(directory, precision, quantization):
    return build_runner(Path(directory), precision=precision, quantization=quantization,
                        kv_cache_bytes=KV_CACHE_BYTES, block_size=16, max_model_len=64, num_threads=1)

small, *directories = sys.argv[1:]
for way in [(Precision.FLOAT32, Quantization.NONE), *((Precision.BFLOAT16, each) for each in Quantization)]:
    build(small, *way)  # what the libraries take when first used is not the model's
    for directory in directories:
        before, before_in_all = anonymous(), told("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins here
        runner = build(directory, *way)
        peak = told("VmHWM") - before_in_all
        need = runner.figures.footprint(Demand(KV_CACHE_BYTES, 16, 64, 0, 0))
        print(Path(directory).name, *way, need.weights, need.kv_cache, need.step, anonymous() - before, peak)
        del runner
"""


class Held(NamedTuple):
    """What `PROBE` saw of one model, held in one way. Bytes."""

    family: str
    precision: str
    quantization: str
    weights: int
    kv_cache: int
    loading: int
    allocated: int
    peak: int
    """Of everything that counts as this process's, mapped files too."""

    @staticmethod
    def read(line: str) -> "Held":
        family, precision, quantization, *numbers = line.split()
        return Held(family, precision, quantization, *map(int, numbers))


@pytest.fixture(scope="module")
def every_model(tmp_path_factory: pytest.TempPathFactory) -> list[Held]:
    """Each family in each precision and quantization, loaded in turn in a process of its own."""
    sizes = {"hidden_size": 512, "intermediate_size": 1536, "vocab_size": 8000, "num_hidden_layers": 8}
    kinds = {
        "llama": Case("Llama", sizes),
        "tied": Case("Llama", {**sizes, "tie_word_embeddings": True}),
        "mistral": Case("Mistral", {**sizes, "sliding_window": 32}),
        "qwen2": Case("Qwen2", sizes),
        # Of layers so small that two are loaded at once.
        "qwen3": Case("Qwen3", {**sizes, "head_dim": 64, "intermediate_size": 384, "num_hidden_layers": 12}),
    }
    base = tmp_path_factory.mktemp("models")
    directories = [write_checkpoint(base / name, case) for name, case in kinds.items()]
    done = subprocess.run(
        [sys.executable, "-c", PROBE, str(MODEL), *map(str, directories)],
        capture_output=True,
        text=True,
        timeout=500,
        check=True,
    )
    return [Held.read(line) for line in done.stdout.splitlines()]


def held(of: ModelSpec, itemsize: int, *, positions: int = 2048) -> int:
    """Bytes of weights, as the figures say."""
    demand = Demand(64 * MIB, 16, max_model_len=positions, max_batched_tokens=512, max_sequences=16)
    return memory.figures(of, STORAGES["None"], memory.HABITS["cpu"], itemsize=itemsize).footprint(demand).weights


def test_weights_are_those_of_the_checkpoint_and_the_second_copy_of_a_tied_embedding() -> None:
    checkpoint = Checkpoint(MODEL)
    stored = sum(checkpoint.read([name], torch.float32, "cpu").nbytes for name in SHAPES)
    tables = 2 * 2048 * SPEC.head_dim * 4
    copied = SPEC.vocab_size * SPEC.hidden_size * 4
    assert SPEC.tie_word_embeddings
    assert held(SPEC, 4) == stored + copied + tables


def test_an_untied_model_holds_its_embedding_once() -> None:
    assert held(replace(SPEC, tie_word_embeddings=False), 2) == held(SPEC, 2)


def test_decode_steps_that_a_gpu_repeats_hold_their_memory() -> None:
    """Each sequence of the largest: its logits twice, and what the pieces of the longest context come to."""
    on_cpu, on_gpu = (
        memory.figures(SPEC, STORAGES["None"], memory.HABITS[kind], itemsize=2) for kind in ("cpu", "cuda")
    )
    pieces = most_pieces(SPEC.max_positions) * SPEC.num_heads * (SPEC.head_dim + 1) * 4
    assert on_cpu.graph_sequence == 0
    assert on_gpu.graph_sequence > 2 * SPEC.vocab_size * 2 + pieces
    assert on_gpu.step_sequence - on_cpu.step_sequence == pieces


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


def test_loading_tells_each_reading_and_ends_with_all_of_them(tmp_path: Path) -> None:
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
    assert len(told) > SPEC.num_layers
    assert [done for done, _ in told] == sorted({done for done, _ in told})
    done, total = told[-1]
    assert done == total == sum(torch.Size(shape).numel() for shape in SHAPES.values()) * 4


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/status")
def test_what_is_allocated_is_what_was_predicted(every_model: list[Held]) -> None:
    """Weights and KV cache, as the system counts them. A large cache would hide what the weights really take."""
    assert len(every_model) == 5 * (1 + len(Quantization))
    for held in every_model:
        assert held.weights > 2 * held.kv_cache
        assert abs(held.allocated / (held.weights + held.kv_cache) - 1) < 0.03, held


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/status")
def test_loading_holds_no_second_copy_of_the_weights(every_model: list[Held]) -> None:
    for held in every_model:
        assert held.peak < held.weights + held.kv_cache + held.loading, held
