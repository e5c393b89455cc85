"""Reading a checkpoint's JSON files with types, so that every error names file and field."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from capstan_engine.errors import ModelError, UnsupportedModel

_DTYPES = {"float32": "float32", "bfloat16": "bfloat16", "float16": "bfloat16"}
"""float16 becomes bfloat16: processors multiply it a thousand times slower."""

T = TypeVar("T", int, float, str, bool)


class Config:
    """A JSON object whose fields are read with their type. All methods raise `ModelError`."""

    def __init__(self, path: Path, fields: Mapping[str, Any]) -> None:
        self.path = path
        self.fields = fields

    @classmethod
    def read(cls, path: Path) -> "Config":
        try:
            fields = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise ModelError(f"{path}: no such file; a model directory needs one") from error
        except (OSError, ValueError, RecursionError) as error:
            raise ModelError(f"{path}: cannot be read: {error}") from error
        if not isinstance(fields, dict):
            raise ModelError(f"{path}: must hold a JSON object")
        return cls(path, fields)

    def get(self, name: str, kind: type[T], default: T | None = None) -> T:
        """The field `name`, or `default` where it is absent or null. An int serves where a float is wanted."""
        value = self.fields.get(name)
        if value is None:
            if default is None:
                raise ModelError(f"{self.path}: {name} is missing")
            return default
        fits = isinstance(value, (int, float) if kind is float else kind)
        if not fits or (isinstance(value, bool) and kind is not bool):
            raise ModelError(f"{self.path}: {name} must be {kind.__name__}, not {value!r}")
        return kind(value)

    def positive(self, name: str, default: int | None = None) -> int:
        value = self.get(name, int, default)
        if value < 1:
            raise ModelError(f"{self.path}: {name} must be at least 1, not {value}")
        return value

    def numbers(self, name: str) -> tuple[float, ...]:
        """A list of numbers; empty where the field is absent or null."""
        values = self.fields.get(name) or []
        if not isinstance(values, list) or not all(type(value) in (int, float) for value in values):
            raise ModelError(f"{self.path}: {name} must be a list of numbers")
        return tuple(map(float, values))

    def object(self, name: str) -> "Config | None":
        value = self.fields.get(name)
        if value is not None and not isinstance(value, dict):
            raise ModelError(f"{self.path}: {name} must be an object, not {value!r}")
        return None if value is None else Config(self.path, value)

    def token_ids(self, name: str) -> tuple[int, ...]:
        """A token id, a list of them, or nothing."""
        value = self.fields.get(name)
        ids = [] if value is None else value if isinstance(value, list) else [value]
        if not all(type(token_id) is int and token_id >= 0 for token_id in ids):
            raise ModelError(f"{self.path}: {name} must be a token id or a list of them, not {value!r}")
        return tuple(ids)

    def dtype(self) -> str:
        """`dtype`, or `torch_dtype` as it was called before transformers 5."""
        name = self.get("dtype", str, self.get("torch_dtype", str, "float32"))
        if name not in _DTYPES:
            raise UnsupportedModel(f"{self.path}: dtype {name!r} is not supported; there are {', '.join(_DTYPES)}")
        return _DTYPES[name]
