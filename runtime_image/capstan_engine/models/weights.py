"""A checkpoint's tensors: safetensors files, single or listed in an index. Reads lazily, one tensor at a time.

Files of other kinds (pickles) are refused, not converted: reading them can run code.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from capstan_engine.errors import ModelError, UnsupportedModel
from capstan_engine.models.config_file import Config

_SINGLE = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
_FLOATS = {"F32", "F16", "BF16"}


class Checkpoint:
    """The tensors of one model directory, by name."""

    def __init__(self, model_dir: Path) -> None:
        """Opens every file and reads its header. Raises `ModelError` naming the file."""
        self._model_dir = model_dir
        self._files: dict[str, Any] = {}
        self._file_of: dict[str, Path] = {}
        for path in _paths(model_dir):
            # SafetensorError: not a safetensors file, or cut short.
            try:
                handle: Any = safe_open(path, framework="pt")
            except (SafetensorError, OSError) as error:
                raise ModelError(f"{path}: cannot be read as safetensors: {error}") from error
            self._files[str(path)] = handle
            self._file_of.update(dict.fromkeys(handle.keys(), path))
        if (model_dir / _INDEX).exists():
            self._check_index()

    def check(self, expected: Mapping[str, tuple[int, ...]], ignored: Callable[[str], bool]) -> None:
        """Raises `ModelError` unless exactly the `expected` names and shapes are there, `ignored` names aside."""
        missing = sorted(expected.keys() - self._file_of.keys())
        extra = sorted(name for name in self._file_of.keys() - expected.keys() if not ignored(name))
        misshapen = []
        for name in sorted(expected.keys() & self._file_of.keys()):
            part = self._slice(name)
            shape = tuple(part.get_shape())
            if shape != expected[name]:
                misshapen.append(f"{name} is {list(shape)}, not {list(expected[name])}")
            if part.get_dtype() not in _FLOATS:
                raise UnsupportedModel(f"{self._file_of[name]}: {name} has dtype {part.get_dtype()}")
        problems = [
            f"{what}: {_listed(names)}"
            for what, names in (("missing tensors", missing), ("unknown tensors", extra), ("wrong shapes", misshapen))
            if names
        ]
        if problems:
            raise ModelError(f"{self._model_dir}: the weights do not fit config.json; {'; '.join(problems)}")

    def __contains__(self, name: str) -> bool:
        return name in self._file_of

    def read(self, name: str, dtype: torch.dtype, device: str, *, copy: bool = False) -> torch.Tensor:
        """The tensor `name`, converted. Raises `ModelError` where the file is damaged.

        It may be a view of the mapped file, for as long as it lives: what is kept must be read with `copy`.
        """
        path = self._file_of[name]
        try:
            tensor: torch.Tensor = self._files[str(path)].get_tensor(name)
        except (SafetensorError, OSError) as error:
            raise ModelError(f"{path}: tensor {name} cannot be read: {error}") from error
        return tensor.to(device=device, dtype=dtype, copy=copy)

    def _slice(self, name: str) -> Any:
        return self._files[str(self._file_of[name])].get_slice(name)

    def _check_index(self) -> None:
        """Every tensor must be where the index says."""
        for name, file in _weight_map(self._model_dir).items():
            if self._file_of.get(name) != self._model_dir / file:
                raise ModelError(f"{self._model_dir / _INDEX}: tensor {name} is not in {file}")


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
