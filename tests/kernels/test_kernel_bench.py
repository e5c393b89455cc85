"""The bench of the kernels runs through, in small, so that it does not fail first where there is a GPU."""

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch


@pytest.fixture(autouse=True)
def nan_in_new_memory() -> None:
    """Not here: on a GPU some of the peers have no deterministic algorithm."""


@pytest.fixture(scope="module")
def bench() -> ModuleType:
    path = Path(__file__).parents[1] / "bench/kernels.py"
    # Benches import each other by name.
    sys.path.append(str(path.parent))
    spec = importlib.util.spec_from_file_location("kernel_bench", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def once(call: Callable[[], object]) -> float:
    call()
    return 1e-6


def small(bench: ModuleType) -> Any:
    return bench.Sizes(
        num_heads=4,
        num_kv_heads=2,
        width=16,
        hidden=32,
        inner=24,
        vocab=90,
        matrix=32,
        copied_bytes=64,
        decodes=((1, 20), (2, 5)),
        prompts=((1, 16), (2, 8)),
        rows=(2,),
        gemm_rows=(1,),
        evicting_bytes=1 << 12,
        dtype=torch.float32,
    )


@pytest.mark.filterwarnings("ignore:flex_attention called without")
def test_every_case_is_measured_and_compared(bench: ModuleType) -> None:
    cases = list(bench.cases(once, small(bench), lambda function: function))
    assert len({case.name for case in cases}) == len(cases)
    lines = [row for case in cases for row in case.rows()]
    assert {line["peer"] for line in lines} >= {
        "copy",
        "matmul",
        "SDPA, contiguous",
        "flex_attention, contiguous",
        "torch",
        "cuBLAS",
    }
    assert all(line["ours"] > 0 and line["peer_value"] > 0 and line["ratio"] > 0 for line in lines)
    # TFLOP/s: all that the product of the ceiling did in its microsecond.
    assert {line["peer_value"] for line in lines if line["peer"] == "matmul"} == {round(2 * 32**3 / 1e6, 3)}


def test_what_the_gpus_cache_would_hold_is_there_several_times_and_used_in_turn(bench: ModuleType) -> None:
    sizes = small(bench)
    assert bench.num_copies(sizes, 1 << 12) == 1
    assert bench.num_copies(sizes, 1 << 10) == 4
    used: list[int] = []
    calls = [lambda number=number: used.append(number) for number in range(3)]
    assert bench.InTurn(calls).seconds(lambda call: (call(), 6.0)[1]) == 2.0
    assert used == [0, 1, 2]


def test_tuning_measures_attention_and_keeps_a_product_only_where_it_beats_cublas(bench: ModuleType) -> None:
    measured = [problem for known in bench.tune(once, small(bench), "some GPU") for problem in known]
    assert [(problem.kernel, problem.gpu, problem.sizes) for problem in measured] == [
        ("decode", "some GPU", (64, 4, 2)),
        ("prefill", "some GPU", (64, 4, 2)),
    ]

    def faster(calls: Any) -> float:
        return 1.0 if calls.calls[0].func is bench.gemm else 2.0

    sizes = small(bench)
    known = [problem for found in bench.tune(faster, sizes, "some GPU") for problem in found]
    products = {problem.sizes for problem in known if problem.kernel == "gemm"}
    assert products == {(1, outputs, inputs, 4) for outputs, inputs in sizes.weights.values()}
