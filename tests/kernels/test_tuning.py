"""Measured tiles: kept in a file that grows, never changing the order of sums."""

import json
from pathlib import Path

import pytest

from capstan_engine.errors import ConfigurationError
from capstan_engine.kernels.triton.tiles import DECODE, Shape
from capstan_engine.kernels.triton.tuning import (
    SHIPPED,
    Measured,
    Problem,
    candidates,
    extend,
    fastest,
    read,
    tile_for,
)

SHAPE = Shape(128, 2)
PROBLEM = Problem("decode", "NVIDIA H200", SHAPE, 4)
TILE = DECODE[SHAPE]


def test_what_is_written_is_read_and_kept_when_more_is_added(tmp_path: Path) -> None:
    path = tmp_path / "cache" / "tiles.json"
    first = {PROBLEM: Measured(TILE, 131.5)}
    extend(path, first)
    assert read(path) == first
    other = PROBLEM._replace(heads=7)
    extend(path, {other: Measured(TILE._replace(num_warps=8), 90.0), PROBLEM: Measured(TILE, 120.0)})
    assert read(path) == {PROBLEM: Measured(TILE, 120.0), other: Measured(TILE._replace(num_warps=8), 90.0)}
    assert [file.name for file in path.parent.iterdir()] == ["tiles.json"]


def test_a_missing_file_and_one_of_another_version_hold_nothing(tmp_path: Path) -> None:
    path = tmp_path / "tiles.json"
    assert read(path) == {}
    path.write_text(json.dumps({"format": 0, "measured": [{"old": 1}]}))
    assert read(path) == {}


@pytest.mark.parametrize("text", ["{", "[]", '{"format": 1, "measured": [{"kernel": "decode"}]}'])
def test_a_broken_file_is_named_with_the_remedy(tmp_path: Path, text: str) -> None:
    path = tmp_path / "tiles.json"
    path.write_text(text)
    with pytest.raises(ConfigurationError, match=r"tiles\.json.*delete it"):
        read(path)


def test_the_shipped_file_can_be_read() -> None:
    assert SHIPPED.exists()
    assert all(measured.tile.rows > 0 for measured in read(SHIPPED).values())


def test_tuning_leaves_the_order_of_sums_alone_and_takes_the_fastest_that_runs() -> None:
    tiles = list(candidates(TILE))
    assert tiles[0] == TILE
    assert {(tile.rows, tile.keys) for tile in tiles} == {(TILE.rows, TILE.keys)}
    assert len(set(tiles)) == len(tiles) > 4
    times = {tile: None if tile.num_stages == 7 else 100.0 + tile.num_warps - tile.num_stages for tile in tiles}
    assert fastest(tiles, times.__getitem__) == Measured(TILE._replace(num_warps=4, num_stages=5), 99.0)


def test_without_a_measurement_the_table_decides() -> None:
    assert tile_for("decode", 80, 2, 4) == DECODE[SHAPE]
