"""A checkpoint's tensors: safetensors files, single or listed in an index. Reads what it is asked for, into place.

Files of other kinds (pickles) are refused, not converted: reading them can run code. The surprising idea: the library
judges a file and then reads nothing of it, because it maps files into memory, where every page that was read counts
beside the tensor that was made of it. Here bytes go from the file to where they stay.
"""

import json
import math
import mmap
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
from safetensors import SafetensorError, safe_open

from capstan_engine.errors import ModelError, UnsupportedModel
from capstan_engine.models.config_file import Config
from capstan_engine.models.disk import PAGE, File

_SINGLE = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
_FLOATS: Final = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_PIECE_BYTES: Final = 1 << 20
"""Read at once."""
_LENT_BYTES: Final = 1 << 20
"""Of a tensor that is worth the trouble."""


@dataclass(frozen=True, slots=True)
class _Stored:
    """Where a tensor lies."""

    path: Path
    dtype: str
    shape: tuple[int, ...]
    offset: int
    num_bytes: int


class Checkpoint:
    """The tensors of one model directory, by name."""

    def __init__(self, model_dir: Path) -> None:
        """Opens every file and reads its header. Raises `ModelError` naming the file."""
        self._model_dir = model_dir
        self._stored: dict[str, _Stored] = {}
        self._memory = _Memory()
        for path in _paths(model_dir):
            self._stored.update(_header(path))
        if (model_dir / _INDEX).exists():
            self._check_index()

    def check(self, expected: Mapping[str, tuple[int, ...]], ignored: Callable[[str], bool]) -> None:
        """Raises `ModelError` unless exactly the `expected` names and shapes are there, `ignored` names aside."""
        missing = sorted(expected.keys() - self._stored.keys())
        extra = sorted(name for name in self._stored.keys() - expected.keys() if not ignored(name))
        misshapen = []
        for name in sorted(expected.keys() & self._stored.keys()):
            stored = self._stored[name]
            if stored.shape != expected[name]:
                misshapen.append(f"{name} is {list(stored.shape)}, not {list(expected[name])}")
            self._check_dtype(name)
        problems = [
            f"{what}: {_listed(names)}"
            for what, names in (("missing tensors", missing), ("unknown tensors", extra), ("wrong shapes", misshapen))
            if names
        ]
        if problems:
            raise ModelError(f"{self._model_dir}: the weights do not fit config.json; {'; '.join(problems)}")

    def __contains__(self, name: str) -> bool:
        return name in self._stored

    def shape(self, name: str) -> tuple[int, ...]:
        """That of a tensor which is there."""
        return self._stored[name].shape

    def read(self, names: Sequence[str], dtype: torch.dtype, device: str) -> torch.Tensor:
        """The tensors `names` below each other as one, converted. Raises `ModelError` where a file is damaged.

        They agree in all but their first dimension.
        """
        for name in names:
            self._check_dtype(name)
        parts = [self._stored[name] for name in names]
        num_rows = [part.shape[0] for part in parts]
        shape = (sum(num_rows), *parts[0].shape[1:])
        if device == "cpu" and math.prod(shape) * dtype.itemsize >= _LENT_BYTES:
            tensor = self._memory.lend(shape, dtype)
        else:
            tensor = torch.empty(shape, dtype=dtype, device=device)
        for name, part, rows in zip(names, parts, torch.split(tensor, num_rows), strict=True):
            try:
                _fill(rows.view(-1), part, self._memory.staging(device))
            except OSError as error:
                raise ModelError(f"{part.path}: tensor {name} cannot be read: {error}") from error
        return tensor

    def _check_dtype(self, name: str) -> None:
        stored = self._stored[name]
        if stored.dtype not in _FLOATS:
            raise UnsupportedModel(f"{stored.path}: {name} has dtype {stored.dtype}")

    def _check_index(self) -> None:
        """Every tensor must be where the index says."""
        for name, file in _weight_map(self._model_dir).items():
            stored = self._stored.get(name)
            if stored is None or stored.path != self._model_dir / file:
                raise ModelError(f"{self._model_dir / _INDEX}: tensor {name} is not in {file}")


class _Memory(threading.local):
    """A thread's memory for one tensor after the other: what nobody holds a tensor in any more is lent again.

    A weight is read, packed and forgotten, and where memory is fresh its first use takes longer than the reading.
    """

    def __init__(self) -> None:
        self._lent: mmap.mmap | None = None
        self._staging: torch.Tensor | None = None

    def lend(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        """Numbers of any value."""
        num_bytes, lent = math.prod(shape) * dtype.itemsize, self._lent
        # A tensor holds its memory too; without any there are `self`, `lent` and the argument of the question.
        if lent is None or len(lent) < num_bytes or sys.getrefcount(lent) > 3:
            lent = self._lent = mmap.mmap(-1, num_bytes, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        return torch.frombuffer(lent, dtype=dtype, count=math.prod(shape)).view(shape)

    def staging(self, device: str) -> memoryview:
        """For what is read at once, as `File.read` wants it."""
        if self._staging is None:
            self._staging = torch.empty(_PIECE_BYTES + 3 * PAGE, dtype=torch.uint8, pin_memory=device == "cuda")
        begin = -self._staging.data_ptr() % PAGE
        return self._staging.numpy().data[begin : begin + _PIECE_BYTES + 2 * PAGE]


def _header(path: Path) -> Iterator[tuple[str, _Stored]]:
    """The tensors of one file. Raises `ModelError` unless it is whole and of the right kind."""
    try:
        # Checks that all that the header says agrees with itself and with the length of the file.
        with safe_open(path, framework="pt"), path.open("rb") as file:
            header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
            start = file.tell()
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{path}: cannot be read as safetensors: {error}") from error
    header.pop("__metadata__", None)
    for name, facts in header.items():
        begin, end = facts["data_offsets"]
        yield name, _Stored(path, facts["dtype"], tuple(facts["shape"]), start + begin, end - begin)


def _fill(flat: torch.Tensor, stored: _Stored, memory: memoryview) -> None:
    """`[n]` with the numbers of a stored tensor, by way of `memory`. Raises `OSError`."""
    dtype, end = _FLOATS[stored.dtype], stored.offset
    with File(stored.path) as file:
        for piece in torch.split(flat, _PIECE_BYTES // dtype.itemsize):
            begin, end = end, end + piece.numel() * dtype.itemsize
            piece.copy_(torch.frombuffer(file.read(begin, end, memory), dtype=dtype))


def _paths(model_dir: Path) -> list[Path]:
    if (model_dir / _INDEX).exists():
        return [model_dir / file for file in sorted(set(_weight_map(model_dir).values()))]
    if (model_dir / _SINGLE).exists():
        return [model_dir / _SINGLE]
    pickles = sorted(path.name for pattern in _PICKLES for path in model_dir.glob(pattern))
    if pickles:
        raise UnsupportedModel(
            f"{model_dir}: holds {_listed(pickles)} but no safetensors; such files can run code when they are read: "
            f"convert the checkpoint to safetensors"
        )
    raise ModelError(f"{model_dir}: has neither {_SINGLE} nor {_INDEX}")


def _weight_map(model_dir: Path) -> dict[str, str]:
    path = model_dir / _INDEX
    weight_map = Config.read(path).fields.get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ModelError(f"{path}: weight_map must be an object that names a file for each tensor")
    for file in weight_map.values():
        if not isinstance(file, str) or Path(file).name != file or not file.endswith(".safetensors"):
            raise ModelError(f"{path}: {file!r} must be the name of a .safetensors file in this directory")
    return weight_map


def _listed(names: list[str], most: int = 5) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
