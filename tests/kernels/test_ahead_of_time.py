"""Every kernel and every tile of the tables is compiled for GPUs that are not here: nothing spills and all fits."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

MATRIX_INSTRUCTION = {80: "mma.sync", 90: "wgmma.mma_async", 100: "tcgen05.mma"}
SMALLEST_ROWS = {80: 16, 90: 64, 100: 64}
"""Of those instructions: a product with fewer rows falls to `mma.sync`, which decoding, bound by memory, can afford."""


Compiled = tuple[int, list[dict[str, Any]]]


@pytest.fixture(scope="module")
def compilers() -> dict[int, "subprocess.Popen[str]"]:
    """One for each architecture, side by side."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    program = Path(__file__).with_name("ahead_of_time.py")
    return {
        architecture: subprocess.Popen(
            [sys.executable, program, str(architecture)],
            env=environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for architecture in MATRIX_INSTRUCTION
    }


@pytest.fixture(scope="module", params=MATRIX_INSTRUCTION, ids=lambda number: f"sm_{number}")
def compiled(request: pytest.FixtureRequest, compilers: dict[int, "subprocess.Popen[str]"]) -> Compiled:
    output, errors = compilers[request.param].communicate()
    assert compilers[request.param].returncode == 0, errors
    return request.param, [json.loads(line) for line in output.splitlines()]


def test_registers_do_not_spill(compiled: Compiled) -> None:
    _, reports = compiled
    assert len(reports) >= 14
    assert {report["name"]: report["spilled_bytes"] for report in reports if report["spilled_bytes"]} == {}


def test_shared_memory_fits(compiled: Compiled) -> None:
    _, reports = compiled
    assert {r["name"]: r["shared_bytes"] for r in reports if r["shared_bytes"] > r["shared_limit"]} == {}


def test_products_are_made_by_the_architectures_own_matrix_instruction(
    compiled: Compiled,
) -> None:
    architecture, reports = compiled
    for report in reports:
        if report["multiplies"]:
            large = report["rows"] >= SMALLEST_ROWS[architecture]
            assert (MATRIX_INSTRUCTION[architecture] if large else "mma.sync") in report["instructions"], report["name"]


def test_keys_and_values_are_copied_while_others_are_multiplied(
    compiled: Compiled,
) -> None:
    _, reports = compiled
    waiting = [r["name"] for r in reports if r["multiplies"] and "cp.async" not in r["instructions"]]
    assert waiting == []
