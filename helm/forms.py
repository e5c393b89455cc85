"""Three forms of one model: commented YAML for those who install, a closed schema for Helm, a table for readers.

Knows how each form looks and repeats no fact: keys, defaults, bounds and sentences come from the model.
"""

import json
import textwrap
from collections.abc import Iterator
from typing import Any

import yaml
from pydantic import BaseModel

from capstan_api.structural import Schema, structural

_WIDTH = 100


def document(model: type[BaseModel]) -> Schema:
    """All keys below `model` as a schema with its defaults filled in, objects closed and references resolved."""
    defaults = model().model_dump(mode="json", by_alias=True)
    return {key: value for key, value in _closed(structural(model), defaults).items() if key != "default"}


def schema_json(model: type[BaseModel], notice: str) -> str:
    """`values.schema.json`, draft 7, which is what Helm reads. The first line says who wrote it."""
    body = {"$schema": "http://json-schema.org/draft-07/schema#", "title": "Values", **document(model)}
    return f'{{ "$comment": {json.dumps(notice)},\n' + json.dumps(body, indent=2, ensure_ascii=False)[2:] + "\n"


def values_yaml(model: type[BaseModel], notice: str) -> str:
    """`values.yaml`: every key with its default, its sentence above it."""
    return f"# {notice}\n\n" + "\n".join(_lines(document(model), 0)) + "\n"


def table(model: type[BaseModel]) -> str:
    """A Markdown table of all keys that hold a value."""
    rows = ["| Key | Type | Default | Meaning |", "| --- | --- | --- | --- |"]
    for path, node, sentence in leaves(model):
        default = f"`{json.dumps(node['default'], ensure_ascii=False)}`" if "default" in node else ""
        rows.append(f"| `{path}` | {_type(node)} | {default} | {sentence} |")
    return "\n".join(rows)


def leaves(model: type[BaseModel]) -> Iterator[tuple[str, Schema, str]]:
    """Path, schema and sentence of every key that holds a value."""
    return _leaves(document(model), "", "")


def _closed(node: Schema, default: Any) -> Schema:
    """`node` with `default` at every level that it reaches. An object that declares its keys takes no other."""
    # Formats such as int32 belong to OpenAPI, the others to an API server.
    foreign = {"format", "required", *(key for key in node if key.startswith("x-kubernetes-"))}
    # An object's own default is that of its keys.
    foreign |= {"default"} if "properties" in node else set()
    node = {key: value for key, value in node.items() if key not in foreign}
    if default is not None:
        node["default"] = default
    if "properties" in node:
        below = default if isinstance(default, dict) else {}
        node["properties"] = {key: _closed(child, below.get(key)) for key, child in node["properties"].items()}
        node["additionalProperties"] = False
    if "items" in node:
        # Nothing is filled in below a list: what an item must have has to be written.
        required = {"required": node["items"]["required"]} if "required" in node["items"] else {}
        node["items"] = {**_closed(node["items"], None), **required}
    return node


def _lines(node: Schema, depth: int) -> Iterator[str]:
    indent = "  " * depth
    for key, child in node["properties"].items():
        for line in textwrap.wrap(child.get("description", ""), _WIDTH - len(indent)):
            yield f"{indent}# {line}"
        if "properties" in child and child["default"]:
            yield f"{indent}{key}:"
            yield from _lines(child, depth + 1)
        else:
            yield f"{indent}{key}: {_flow(child['default'])}"
        if depth == 0:
            yield ""


def _flow(value: Any) -> str:
    text = yaml.safe_dump(value, default_flow_style=True, width=1000, sort_keys=False).strip().removesuffix("\n...")
    return text if text != "''" else '""'


def _leaves(node: Schema, path: str, above: str) -> Iterator[tuple[str, Schema, str]]:
    """Every key below `node` that is no object of declared keys. One without a sentence has its parent's."""
    for key, child in node["properties"].items():
        below, sentence = f"{path}{key}", child.get("description", above)
        if "properties" in child:
            yield from _leaves(child, f"{below}.", sentence)
        else:
            yield below, child, sentence
            if "properties" in child.get("items", {}):
                yield from _leaves(child["items"], f"{below}[].", sentence)


def _type(node: Schema) -> str:
    if "enum" in node:
        return " \\| ".join(f"`{value}`" for value in node["enum"])
    if node["type"] == "array":
        return f"list of {node['items']['type']}s"
    if "minimum" in node and "maximum" in node:
        return f"{node['type']}, {node['minimum']} – {node['maximum']}"
    return str(node["type"])
