"""The CRD is one that an API server accepts: structural, bounded, documented, and its columns lead somewhere."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cel
import pytest
import yaml

from capstan_api import crd
from capstan_api.spec import InferenceDeploymentSpec
from capstan_api.structural import structural
from capstan_api.v1alpha1 import load

ROOT = Path(__file__).resolve().parents[2]
DEFINITION = yaml.safe_load((ROOT / "crds/inferencedeployments.yaml").read_text())
VERSION = DEFINITION["spec"]["versions"][0]
SCHEMA = VERSION["schema"]["openAPIV3Schema"]

# What a node of a structural schema may say, apart from x-kubernetes-int-or-string and preserve-unknown-fields,
# which this contract does without.
ALLOWED = {
    "type", "description", "format", "enum", "pattern", "default", "properties", "required", "items",
    "additionalProperties", "maxProperties", "minimum", "maximum", "minLength", "maxLength", "minItems", "maxItems",
    "x-kubernetes-list-type", "x-kubernetes-list-map-keys", "x-kubernetes-validations",
}  # fmt: skip
TYPES = {"object", "array", "string", "integer", "boolean"}


def nodes(schema: dict[str, Any], path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    yield path, schema
    for name, child in schema.get("properties", {}).items():
        yield from nodes(child, f"{path}.{name}")
    if "items" in schema:
        yield from nodes(schema["items"], f"{path}[]")


ALL = dict(nodes(SCHEMA))


def violations(schema: dict[str, Any]) -> list[str]:
    """What an API server would refuse in a schema, one sentence each."""
    found = []
    for path, node in nodes(schema):
        if node.get("type") not in TYPES:
            found.append(f"{path}: type {node.get('type')} is not one of {sorted(TYPES)}")
        found += [f"{path}: keyword {key} is not allowed" for key in node.keys() - ALLOWED]
        if node.get("type") == "array" and "items" not in node:
            found.append(f"{path}: an array needs items")
        if "properties" in node and "additionalProperties" in node:
            found.append(f"{path}: properties and additionalProperties exclude each other")
        missing = set(node.get("required", [])) - node.get("properties", {}).keys()
        found += [f"{path}: required {name} is no property" for name in sorted(missing)]
        if node.get("x-kubernetes-list-type") == "map":
            optional = set(node["x-kubernetes-list-map-keys"]) - set(node["items"].get("required", []))
            found += [f"{path}: map key {key} must be a required field of the items" for key in sorted(optional)]
    return found


def test_every_node_is_structural() -> None:
    assert violations(SCHEMA) == []


@pytest.mark.parametrize(
    ("broken", "complaint"),
    [
        ({"description": "untyped"}, "type None"),
        ({"type": "number"}, "type number"),
        ({"type": "array"}, "needs items"),
        ({"type": "object", "properties": {}, "additionalProperties": {"type": "string"}}, "exclude each other"),
        ({"type": "string", "anyOf": [{"type": "string"}, {"type": "null"}]}, "anyOf"),
        ({"type": "string", "$ref": "#/$defs/Name"}, "$ref"),
        ({"type": "string", "title": "Name"}, "title"),
        ({"type": "object", "properties": {}, "required": ["gone"]}, "no property"),
        (
            {
                "type": "array",
                "items": {"type": "object"},
                "x-kubernetes-list-type": "map",
                "x-kubernetes-list-map-keys": ["name"],
            },
            "map key name",
        ),
    ],
)
def test_the_validator_itself_refuses_what_an_api_server_refuses(broken: dict[str, Any], complaint: str) -> None:
    assert any(complaint in sentence for sentence in violations({"type": "object", "properties": {"field": broken}}))


def test_metadata_is_narrowed_in_its_name_only() -> None:
    assert SCHEMA["properties"]["metadata"].keys() == {"type", "properties"}
    assert SCHEMA["properties"]["metadata"]["properties"].keys() == {"name"}


def test_every_field_is_explained() -> None:
    silent = [path for path, node in ALL.items() if not node.get("description") and not path.endswith("[]")]
    assert silent == [".metadata"]


def test_spec_is_bounded_so_that_rules_stay_cheap() -> None:
    unbounded = [
        path
        for path, node in ALL.items()
        if path.startswith(".spec")
        and (
            (node["type"] == "string" and "enum" not in node and "maxLength" not in node)
            or (node["type"] == "array" and "maxItems" not in node)
            or (node["type"] == "integer" and not {"minimum", "maximum"} <= node.keys())
        )
    ]
    assert unbounded == []


def test_lists_say_how_server_side_apply_merges_them() -> None:
    lists = {path: node.get("x-kubernetes-list-type") for path, node in ALL.items() if node["type"] == "array"}
    assert lists == {
        ".spec.model.servedModelNames": "set",
        ".spec.variants": "map",
        ".spec.slos": "map",
        ".spec.scaling.schedules": "map",
        ".spec.scheduling.tolerations": None,
        ".status.startup.phases": "map",
        ".status.slos": "map",
        ".status.conditions": "map",
        ".status.decisionHistory": None,
    }


def test_names_follow_the_conventions() -> None:
    fields = [path.rpartition(".")[2] for path in ALL if path and not path.endswith("[]")]
    assert [name for name in fields if not re.fullmatch(r"[a-z][a-zA-Z0-9]*", name)] == []
    values = [value for node in ALL.values() for value in node.get("enum", [])]
    assert [value for value in values if not re.fullmatch(r"[A-Z][A-Za-z0-9]*", value)] == []


def test_status_has_no_defaults() -> None:
    assert [path for path, node in ALL.items() if path.startswith(".status") and "default" in node] == []


def apply_defaults(schema: dict[str, Any], value: Any) -> Any:
    """What the API server's defaulting makes of a value: top down, into objects and items that are there."""
    if isinstance(value, dict):
        filled = dict(value)
        for name, child in schema.get("properties", {}).items():
            if name not in filled and "default" in child:
                filled[name] = child["default"]
            if name in filled:
                filled[name] = apply_defaults(child, filled[name])
        return filled
    if isinstance(value, list):
        return [apply_defaults(schema["items"], item) for item in value]
    return value


@pytest.mark.parametrize("example", sorted((ROOT / "crds/examples").glob("*.yaml")), ids=lambda path: path.stem)
def test_the_schema_fills_in_the_same_defaults_as_the_models(example: Path) -> None:
    written = yaml.safe_load(example.read_text())
    assert apply_defaults(SCHEMA, written)["spec"] == load(example).document()["spec"]


def test_defaults_as_written_obey_the_rules_beside_them() -> None:
    # An API server judges a default before it fills in the defaults of its fields: `{}` beside a rule that reads a
    # field is "no such key", and the whole CRD is refused.
    guarded = [node for node in ALL.values() if "default" in node and "x-kubernetes-validations" in node]
    assert len(guarded) == 3
    for node in guarded:
        for rule in node["x-kubernetes-validations"]:
            assert cel.evaluate(rule["rule"], {"self": node["default"]}) is True, rule


def test_rules_have_messages_of_one_line() -> None:
    rules = [rule for node in ALL.values() for rule in node.get("x-kubernetes-validations", [])]
    assert len(rules) >= 18
    assert [rule for rule in rules if not rule["message"] or "\n" in rule["message"]] == []


def test_columns_and_subresources_lead_to_declared_fields() -> None:
    scale = VERSION["subresources"]["scale"].values()
    columns = [column["jsonPath"] for column in VERSION["additionalPrinterColumns"]]
    selectable = [field["jsonPath"] for field in VERSION["selectableFields"]]
    for path in [*scale, *columns, *selectable]:
        declared = re.sub(r"\[[^]]*\]", "[]", path)
        assert declared in ALL or path == ".metadata.creationTimestamp", path
    assert ALL[".spec.scaling.replicas"]["type"] == ALL[".status.replicas"]["type"] == "integer"
    assert ALL[".status.selector"]["type"] == "string"


def test_the_resource_is_easy_to_find() -> None:
    spec = DEFINITION["spec"]
    assert spec["scope"] == "Namespaced"
    assert spec["names"]["shortNames"] == ["infd"]
    assert spec["names"]["categories"] == ["all", "capstan"]
    assert DEFINITION["metadata"]["name"] == f"{spec['names']['plural']}.{spec['group']}"


def test_a_fields_own_sentence_wins_over_its_models() -> None:
    slo = structural(InferenceDeploymentSpec)["properties"]["slos"]["items"]["properties"]
    assert slo["ttft"]["description"] != slo["tpot"]["description"]


def test_the_definition_is_written_without_references_between_its_parts() -> None:
    assert not re.search(r"[&*]id\d", crd.render())
