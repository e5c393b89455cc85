"""From pydantic models to Kubernetes' structural schemas: the dialect of OpenAPI that a CRD may speak.

A structural schema types every node, has no references, no `anyOf` with null, no titles and no closed objects (the API
server prunes or refuses unknown fields by itself). Knows nothing of Capstan's own fields. The surprising idea:
an object's default is `{}`, and the API server fills it from its children's own defaults; but where the object has
rules, its default is written out in full, because a CRD whose defaults break a rule *as written* is refused.

Source of the dialect: the Kubernetes documentation, "Extend the Kubernetes API with CustomResourceDefinitions".
"""

from typing import Any

from pydantic import BaseModel, TypeAdapter
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue, NoDefault
from pydantic_core import core_schema

from capstan_api.contract import Contract

Schema = dict[str, Any]

_INT32_MAX = 2**31 - 1
# The order in which a reader wants the keywords; all others follow.
_ORDER = ("description", "type", "format", "enum", "pattern", "default")


def structural(model: type[BaseModel]) -> Schema:
    """The structural schema of `model`, by alias."""
    schema = model.model_json_schema(by_alias=True, schema_generator=_Dialect)
    return _tidy(_inline(schema, schema.get("$defs", {})))


def without_defaults(schema: Schema) -> Schema:
    """The same schema with no defaults: status says what was observed, and an API server observes nothing."""
    plain = {key: value for key, value in schema.items() if key != "default"}
    if "properties" in plain:
        plain["properties"] = {name: without_defaults(child) for name, child in plain["properties"].items()}
    if "items" in plain:
        plain["items"] = without_defaults(plain["items"])
    return plain


class _Dialect(GenerateJsonSchema):
    """pydantic's own generator, changed where Kubernetes differs."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False

    def nullable_schema(self, schema: core_schema.NullableSchema) -> JsonSchemaValue:
        return self.generate_inner(schema["schema"])

    def get_default_value(self, schema: core_schema.WithDefaultSchema) -> Any:
        factory = schema.get("default_factory")
        value = factory() if factory else schema.get("default")  # type: ignore[call-arg]
        return NoDefault if value is None else value

    def encode_default(self, dft: Any) -> Any:
        parts = dft if isinstance(dft, list | tuple) else (dft,)
        in_full = any(isinstance(part, Contract) and part.rules for part in parts)
        return TypeAdapter(Any).dump_python(
            dft, by_alias=True, mode="json", exclude_unset=not in_full, exclude_none=True
        )

    def int_schema(self, schema: core_schema.IntSchema) -> JsonSchemaValue:
        width = "int32" if schema.get("le", _INT32_MAX + 1) <= _INT32_MAX else "int64"
        return {**super().int_schema(schema), "format": width}

    def model_schema(self, schema: core_schema.ModelSchema) -> JsonSchemaValue:
        made = super().model_schema(schema)
        model = schema["cls"]
        if issubclass(model, Contract) and model.rules:
            made["x-kubernetes-validations"] = [{"rule": r.cel, "message": r.message} for r in model.rules]
        return made


def _inline(node: Any, definitions: Schema) -> Any:
    """Replace each `$ref` by what it names; keywords beside it, such as a field's own description, win."""
    if isinstance(node, list):
        return [_inline(item, definitions) for item in node]
    if not isinstance(node, dict):
        return node
    if "$ref" in node:
        target = definitions[node["$ref"].removeprefix("#/$defs/")]
        beside = {key: value for key, value in node.items() if key != "$ref"}
        return _inline({**target, **beside}, definitions)
    return {key: _inline(value, definitions) for key, value in node.items() if key != "$defs"}


def _tidy(schema: Schema) -> Schema:
    """Drop titles and closedness, order the keywords, go down into children. Property names are left alone."""
    kept = {key: value for key, value in schema.items() if key not in ("title", "additionalProperties")}
    if isinstance(schema.get("additionalProperties"), dict):
        kept["additionalProperties"] = _tidy(schema["additionalProperties"])
    if "description" in kept:
        kept["description"] = " ".join(kept["description"].split())
    if "properties" in kept:
        kept["properties"] = {name: _tidy(child) for name, child in kept["properties"].items()}
    if "items" in kept:
        kept["items"] = _tidy(kept["items"])
    first = {key: kept[key] for key in _ORDER if key in kept}
    return {**first, **kept}
