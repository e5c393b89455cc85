"""Tiles that were measured on a GPU, in place of those that `tiles` takes from arithmetic.

Two files of one format: one that ships with the engine, and one beside Triton's own cache of compiled kernels, which
whoever measures extends; a start-up reads both, and the second has the last word. The surprising idea: only warps and
the depth of the pipeline are tuned. Rows and keys decide how a context is summed, and a measurement that came out
otherwise today than yesterday must not change more of an answer than how the sum of a row is rounded.
"""

import json
import os
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
import triton

from capstan_engine.errors import ConfigurationError
from capstan_engine.kernels.triton.machine import DEVICE, INTERPRETED, shared_bytes
from capstan_engine.kernels.triton.tiles import DECODE, Shape, Tile, prefill_tile, shape_of

FORMAT = 1
SHIPPED = Path(__file__).with_name("tuned.json")


class Problem(NamedTuple):
    """What a tile is chosen for."""

    kernel: str
    """`decode` or `prefill`."""
    gpu: str
    """As its driver calls it."""
    shape: Shape
    heads: int
    """Query heads of one KV head."""


class Measured(NamedTuple):
    """The fastest tile of a problem."""

    tile: Tile
    microseconds: float


Known = dict[Problem, Measured]


@cache
def tile_for(kernel: str, width: int, itemsize: int, heads: int) -> Tile:
    """The tile of `decode` or `prefill` on this GPU: the measured one, or else the table's."""
    shape = shape_of(width, itemsize)
    if not INTERPRETED:
        measured = _known().get(Problem(kernel, torch.cuda.get_device_name(DEVICE), shape, heads))
        if measured is not None:
            return measured.tile
    return DECODE[shape] if kernel == "decode" else prefill_tile(shape, shared_bytes())


def extended() -> Path:
    """Where measurements of this machine are kept."""
    return Path(triton.knobs.cache.dir) / "capstan-tiles.json"


@cache
def _known() -> Known:
    return read(SHIPPED) | read(extended())


def candidates(tile: Tile) -> Iterator[Tile]:
    """`tile` first, then others with its rows and keys."""
    yield tile
    for num_warps in (4, 8):
        for num_stages in (2, 3, 5, 7):
            other = tile._replace(num_warps=num_warps, num_stages=num_stages)
            if other != tile:
                yield other


def fastest(tiles: Iterable[Tile], microseconds: Callable[[Tile], float | None]) -> Measured:
    """`microseconds` measures one tile, or answers None where the GPU cannot run it."""
    times = ((tile, microseconds(tile)) for tile in tiles)
    return min((Measured(tile, time) for tile, time in times if time is not None), key=lambda entry: entry.microseconds)


def read(path: Path) -> Known:
    """What a file holds; nothing, where there is none. Raises `ConfigurationError` for one that cannot be read."""
    try:
        document = json.loads(path.read_text("utf-8"))
        if document["format"] != FORMAT:
            # Of another version of the engine: measured anew when somebody measures.
            return {}
        return dict(_entry(entry) for entry in document["measured"])
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigurationError(f"{path}: not a file of measured tiles ({error!r}); delete it") from error


def extend(path: Path, measured: Known) -> None:
    """Add to a file, or begin one. Whoever reads it meanwhile sees the old one or the new one."""
    entries = [
        {**problem._asdict(), "shape": problem.shape._asdict(), "tile": tile._asdict(), "microseconds": microseconds}
        for problem, (tile, microseconds) in sorted((read(path) | measured).items())
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(f".{os.getpid()}")
    draft.write_text(json.dumps({"format": FORMAT, "measured": entries}, indent=1) + "\n", "utf-8")
    draft.replace(path)


def _entry(entry: dict[str, Any]) -> tuple[Problem, Measured]:
    problem = Problem(entry["kernel"], entry["gpu"], Shape(**entry["shape"]), int(entry["heads"]))
    return problem, Measured(Tile(**entry["tile"]), float(entry["microseconds"]))
