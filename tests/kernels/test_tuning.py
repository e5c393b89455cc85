"""Measured tiles: kept in a file that grows, never changing the order of sums."""

import json
from pathlib import Path

import pytest

from capstan_engine.errors import ConfigurationError
from capstan_engine.kernels.triton import tuning
from capstan_engine.kernels.triton.tiles import DECODE, GEMM, MOST_GEMM_ROWS, Shape, gemm_rows
from capstan_engine.kernels.triton.tuning import (
    SHIPPED,
    Measured,
    attention_problem,
    candidates,
    extend,
    fastest,
    gemm_problem,
    gemm_tiles,
    read,
    tile_for,
)

SHAPE = Shape(128, 2)
PROBLEM = attention_problem("decode", "NVIDIA H200", SHAPE, 4)
TILE = DECODE[SHAPE]


def test_what_is_written_is_read_and_kept_when_more_is_added(tmp_path: Path) -> None:
    path = tmp_path / "cache" / "tiles.json"
    first = {PROBLEM: Measured(TILE, 131.5)}
    extend(path, first)
    assert read(path) == first
    other = gemm_problem("NVIDIA H200", 16, 4096, 14336, 2)
    extend(path, {other: Measured(GEMM[0], 90.0), PROBLEM: Measured(TILE, 120.0)})
    assert read(path) == {PROBLEM: Measured(TILE, 120.0), other: Measured(GEMM[0], 90.0)}
    assert [file.name for file in path.parent.iterdir()] == ["tiles.json"]


def test_a_missing_file_and_one_of_another_version_hold_nothing(tmp_path: Path) -> None:
    path = tmp_path / "tiles.json"
    assert read(path) == {}
    path.write_text(json.dumps({"format": 1, "measured": [{"old": 1}]}))
    assert read(path) == {}


@pytest.mark.parametrize("text", ["{", "[]", '{"format": 2, "measured": [{"kernel": "decode"}]}'])
def test_a_broken_file_is_named_with_the_remedy(tmp_path: Path, text: str) -> None:
    path = tmp_path / "tiles.json"
    path.write_text(text)
    with pytest.raises(ConfigurationError, match=r"tiles\.json.*delete it"):
        read(path)


def test_the_shipped_file_can_be_read() -> None:
    assert SHIPPED.exists()
    assert all(min(measured.tile) > 0 for measured in read(SHIPPED).values())


def test_tuning_leaves_the_order_of_sums_alone_and_takes_the_fastest_that_runs() -> None:
    tiles = list(candidates(TILE))
    assert tiles[0] == TILE
    assert {(tile.rows, tile.keys) for tile in tiles} == {(TILE.rows, TILE.keys)}
    assert len(set(tiles)) == len(tiles) > 4
    times = {tile: None if tile.num_stages == 7 else 100.0 + tile.num_warps - tile.num_stages for tile in tiles}
    assert fastest(tiles, times.__getitem__) == Measured(TILE._replace(num_warps=4, num_stages=5), 99.0)


def test_without_a_measurement_the_table_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuning, "_known", dict)
    assert tile_for.__wrapped__("decode", 80, 2, 4) == DECODE[SHAPE]
    assert gemm_tiles(4096, 14336, 2) == {}


def test_a_product_takes_the_tile_that_was_measured_for_its_weight_on_this_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuning, "_gpu", lambda: "this GPU")
    known = {
        gemm_problem("this GPU", 16, 4096, 14336, 2): Measured(GEMM[1], 10.0),
        gemm_problem("this GPU", 64, 4096, 14336, 2): Measured(GEMM[5], 20.0),
        gemm_problem("this GPU", 32, 4096, 4096, 2): Measured(GEMM[2], 5.0),
        gemm_problem("NVIDIA H200", 32, 4096, 14336, 2): Measured(GEMM[3], 5.0),
        attention_problem("decode", "this GPU", SHAPE, 4): Measured(TILE._replace(num_warps=8), 100.0),
    }
    monkeypatch.setattr(tuning, "_known", lambda: known)
    assert gemm_tiles(4096, 14336, 2) == {16: GEMM[1], 64: GEMM[5]}


def test_where_the_gpu_can_run_no_tile_none_is_the_fastest() -> None:
    assert fastest(GEMM, lambda _tile: None) is None


def test_every_number_of_rows_that_is_measured_stands_for_itself() -> None:
    sizes = {gemm_rows(num) for num in range(1, MOST_GEMM_ROWS + 1)}
    assert sizes == {1, 16, 32, 64, 128, 256}
    assert all(gemm_rows(size) == size for size in sizes)
    assert all(gemm_rows(num) >= num for num in range(1, MOST_GEMM_ROWS + 1))
