"""Kernels are run by Triton's interpreter where there is no GPU, and in full where there is one.

The interpreter is chosen while Triton is imported, so it must be asked for before.
"""

import importlib.util
import os
from collections.abc import Iterator

import pytest
import torch

HAS_TRITON = importlib.util.find_spec("triton") is not None
collect_ignore_glob = [] if HAS_TRITON else ["test_*.py"]

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"
# Without it cuBLAS refuses to work while `nan_in_new_memory` asks for determinism.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


def pytest_report_header() -> list[str]:
    return [] if HAS_TRITON else ["LEFT OUT tests/kernels: Triton is not installed; it comes with torch's CUDA build"]


@pytest.fixture(autouse=True)
def nan_in_new_memory() -> Iterator[None]:
    """What `torch.empty` returns is filled with NaN, so that an element which a kernel forgets shows."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def generator() -> torch.Generator:
    """Other numbers in every run; the seed is printed with a failure."""
    generator = torch.Generator()
    print("seed", generator.seed())
    return generator
