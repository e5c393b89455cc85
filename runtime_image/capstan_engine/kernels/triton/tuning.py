"""Tiles that were measured on a GPU: in place of those that `tiles` takes from arithmetic, or in place of cuBLAS.

Two files of one format: one that ships with the engine, and one beside Triton's own cache of compiled kernels, which
whoever measures extends; a start-up reads both, and the second has the last word. The surprising idea: of attention's
tiles only warps and the depth of the pipeline are tuned. Rows and keys decide how a context is summed, and what was
measured otherwise today than yesterday must not change more of an answer than how the sum of a row is rounded.
"""

import json
import os
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

import torch
import triton

from capstan_engine.errors import ConfigurationError
from capstan_engine.kernels.triton.machine import DEVICE, INTERPRETED, shared_bytes
from capstan_engine.kernels.triton.tiles import DECODE, GemmTile, Shape, Tile, prefill_tile, shape_of

FORMAT = 2
SHIPPED = Path(__file__).with_name("tuned.json")

AnyTile = TypeVar("AnyTile", bound=tuple[int, ...])


class Problem(NamedTuple):
    """What a tile is chosen for."""

    kernel: str
    """`decode`, `prefill` or `gemm`."""
    gpu: str
    """As its driver calls it."""
    sizes: tuple[int, ...]
    """Of attention: width of a head, bytes of a number, query heads of one KV head. Of a product: rows (`gemm_rows`),
    outputs, inputs, bytes of a number."""


class Measured(NamedTuple, Generic[AnyTile]):
    """The fastest tile of a problem."""

    tile: AnyTile
    microseconds: float


Known = dict[Problem, Measured[tuple[int, ...]]]


def attention_problem(kernel: str, gpu: str, shape: Shape, heads: int) -> Problem:
    """`heads` are the query heads of one KV head."""
    return Problem(kernel, gpu, (*shape, heads))


def gemm_problem(gpu: str, num_rows: int, num_outputs: int, num_inputs: int, itemsize: int) -> Problem:
    """`num_rows` as `gemm_rows` has it."""
    return Problem("gemm", gpu, (num_rows, num_outputs, num_inputs, itemsize))


@cache
def tile_for(kernel: str, width: int, itemsize: int, heads: int) -> Tile:
    """The tile of `decode` or `prefill` on this GPU: the measured one, or else the table's."""
    shape = shape_of(width, itemsize)
    measured = _known().get(attention_problem(kernel, _gpu(), shape, heads))
    if measured is not None:
        return Tile(*measured.tile)
    return DECODE[shape] if kernel == "decode" else prefill_tile(shape, shared_bytes())


def gemm_tiles(num_outputs: int, num_inputs: int, itemsize: int) -> dict[int, GemmTile]:
    """The tiles that beat cuBLAS on this GPU for a weight `[N, K]`, by `gemm_rows`."""
    return {
        problem.sizes[0]: GemmTile(*measured.tile)
        for problem, measured in _known().items()
        if problem == gemm_problem(_gpu(), problem.sizes[0], num_outputs, num_inputs, itemsize)
    }


def extended() -> Path:
    """Where measurements of this machine are kept."""
    return Path(triton.knobs.cache.dir) / "capstan-tiles.json"


@cache
def _known() -> Known:
    return {} if INTERPRETED else read(SHIPPED) | read(extended())


def read_again() -> None:
    """From now on choose by what the files hold now."""
    _known.cache_clear()
    tile_for.cache_clear()


def _gpu() -> str:
    return "none" if INTERPRETED else torch.cuda.get_device_name(DEVICE)


def candidates(tile: Tile) -> Iterator[Tile]:
    """`tile` first, then others with its rows and keys."""
    yield tile
    for num_warps in (4, 8):
        for num_stages in (2, 3, 5, 7):
            other = tile._replace(num_warps=num_warps, num_stages=num_stages)
            if other != tile:
                yield other


def fastest(tiles: Iterable[AnyTile], microseconds: Callable[[AnyTile], float | None]) -> Measured[AnyTile] | None:
    """`microseconds` measures one tile, or answers None where the GPU cannot run it. None where it can run none."""
    times = ((tile, microseconds(tile)) for tile in tiles)
    measured = (Measured(tile, time) for tile, time in times if time is not None)
    return min(measured, key=lambda entry: entry.microseconds, default=None)


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
        {**problem._asdict(), "tile": tile, "microseconds": microseconds}
        for problem, (tile, microseconds) in sorted((read(path) | measured).items())
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(f".{os.getpid()}")
    draft.write_text(json.dumps({"format": FORMAT, "measured": entries}, indent=1) + "\n", "utf-8")
    draft.replace(path)


def _entry(entry: dict[str, Any]) -> tuple[Problem, Measured[tuple[int, ...]]]:
    problem = Problem(entry["kernel"], entry["gpu"], tuple(map(int, entry["sizes"])))
    return problem, Measured(tuple(map(int, entry["tile"])), float(entry["microseconds"]))
