"""Reading manifests: YAML as Kubernetes reads it, and faults as people want them.

Knows YAML and JSON, and schemas only to explain a fault. The surprising idea: a document goes through JSON before it
is validated, because that is what an API server sees: `replicas: "2"` and `replicas: true` are wrong types there, a
date is text, and a key written twice is a mistake rather than a choice.
"""

import difflib
import json
from pathlib import Path
from typing import Any

import yaml

from capstan_api.structural import Schema


class InvalidResource(ValueError):
    """A document is not a valid InferenceDeployment. The message has one line per fault: `field: what is wrong`.

    `generation` is its metadata.generation, 0 where nobody counts.
    """

    def __init__(self, message: str, generation: int = 0) -> None:
        super().__init__(message)
        self.generation = generation


def read_document(path: Path) -> Any:
    """The one YAML document in a file. Raises `InvalidResource`, or `OSError` when the file cannot be read."""
    try:
        documents = [d for d in yaml.load_all(path.read_text("utf-8"), Loader=_Loader) if d is not None]
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidResource(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None
    if len(documents) != 1:
        raise InvalidResource(f"{path} holds {len(documents)} documents; exactly one is expected")
    return documents[0]


def to_json(document: Any) -> str:
    """The document as JSON text; raises `InvalidResource` for what JSON cannot say."""
    try:
        return json.dumps(document, default=str, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidResource(f"the document cannot be written as JSON: {error}") from None


def explain(fault: dict[str, Any], schema: Schema) -> str:
    """One line for one of pydantic's faults: where, what, and what would be right, as far as `schema` tells."""
    path = [part for part in fault["loc"] if isinstance(part, str | int)]
    where = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).removeprefix(".")
    message = str(fault["msg"]).removeprefix("Value error, ")
    if fault["type"] == "extra_forbidden":
        siblings = list(_at(schema, path[:-1]).get("properties", {}))
        near = difflib.get_close_matches(str(path[-1]), siblings, n=1)
        known = f"did you mean {near[0]}?" if near else f"known here: {', '.join(siblings)}"
        message = f"unknown field; {known}"
    elif fault["type"] == "missing":
        message = _with_hint("required", schema, path)
    elif fault["type"] != "value_error":
        message = _with_hint(message[:1].lower() + message[1:], schema, path)
    return f"{where}: {message}" if where else message


def _with_hint(message: str, schema: Schema, path: list[str | int]) -> str:
    hint = _at(schema, path).get("description", "").rstrip(".")
    return f"{message} ({hint})" if hint else message


def _at(schema: Schema, path: list[str | int]) -> Schema:
    """The schema of the node at `path`; empty where the path leads out of it."""
    for part in path:
        schema = schema.get("items", {}) if isinstance(part, int) else schema.get("properties", {}).get(part, {})
    return schema


class _Loader(yaml.SafeLoader):
    """YAML's safe subset with unique keys and no dates, as `kubectl` reads it."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if key.value in seen and isinstance(key, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key.value!r} appears twice", key.start_mark
                )
            if isinstance(key, yaml.ScalarNode):
                seen.add(key.value)
        return super().construct_mapping(node, deep)


def _date_as_text(loader: _Loader, node: yaml.ScalarNode) -> Any:
    return loader.construct_scalar(node)


_Loader.add_constructor("tag:yaml.org,2002:timestamp", _date_as_text)
