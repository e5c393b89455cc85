"""The API server (CEL, types, bounds) and pydantic give the same verdict on the same object."""

import copy
from pathlib import Path
from typing import Any

import cel
import jsonschema
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from capstan_api.crd import schema
from capstan_api.v1alpha1 import InvalidResource, parse

ROOT = Path(__file__).resolve().parents[2]
SCHEMA = schema()
BASE = yaml.safe_load((ROOT / "crds/examples/quickstart.yaml").read_text())


def closed(node: dict[str, Any]) -> dict[str, Any]:
    """The schema as strict field validation reads it: unknown fields are refused."""
    shut = dict(node)
    if "properties" in node:
        shut["properties"] = {name: closed(child) for name, child in node["properties"].items()}
        shut["additionalProperties"] = False
    if "items" in node:
        shut["items"] = closed(node["items"])
    return shut


VALIDATOR = jsonschema.Draft4Validator(
    {**closed(SCHEMA), "properties": {**closed(SCHEMA)["properties"], "metadata": SCHEMA["properties"]["metadata"]}}
)


def as_written(node: dict[str, Any]) -> list[str]:
    """Messages of the rules that defaults break before anything is filled in: an API server refuses such a CRD."""
    found = []
    for child in (*node.get("properties", {}).values(), *([node["items"]] if "items" in node else [])):
        found += as_written(child)
        default = child.get("default")
        judged = [(child, default)] if isinstance(default, dict) else []
        if isinstance(default, list):
            judged = [(child["items"], item) for item in default]
        for judge, value in judged:
            rules = judge.get("x-kubernetes-validations", [])
            found += [rule["message"] for rule in rules if cel.evaluate(rule["rule"], {"self": value}) is not True]
    return found


def complaints(node: dict[str, Any], value: Any) -> list[str]:
    """Messages of the rules that `value` breaks; defaults are filled in on the way, as an API server does before."""
    found = []
    if isinstance(value, dict):
        for name, child in node.get("properties", {}).items():
            if name not in value and "default" in child:
                value[name] = copy.deepcopy(child["default"])
            if name in value:
                found += complaints(child, value[name])
    elif isinstance(value, list):
        (key,) = node.get("x-kubernetes-list-map-keys", [None])
        distinct = {item[key] if key else str(item) for item in value}
        if "x-kubernetes-list-type" in node and len(distinct) < len(value):
            found.append("Duplicate value")
        found += [message for item in value for message in complaints(node["items"], item)]
    rules = node.get("x-kubernetes-validations", [])
    return found + [rule["message"] for rule in rules if cel.evaluate(rule["rule"], {"self": value}) is not True]


def api_server_refuses(document: dict[str, Any]) -> list[str]:
    """Empty when an API server with this CRD would store the document."""
    filled = copy.deepcopy(document)
    faults = [error.message for error in VALIDATOR.iter_errors(filled)]
    return faults or complaints(SCHEMA, filled)


def pydantic_refuses(document: dict[str, Any]) -> list[str]:
    try:
        parse(document)
    except InvalidResource as error:
        return str(error).splitlines()
    return []


def changed(path: str, value: Any) -> dict[str, Any]:
    """The quickstart with one field set, or removed when `value` is None."""
    document: dict[str, Any] = copy.deepcopy(BASE)
    *parents, last = (int(part) if part.isdigit() else part for part in path.split("."))
    node: Any = document
    for part in parents:
        node = node[part] if isinstance(part, int) else node.setdefault(part, {})
    if value is None:
        del node[last]
    else:
        node[last] = value
    return document


DIGEST = "sha256:" + "0f" * 32
WINDOW = {"name": "peak", "cron": "0 8 * * MON-FRI", "durationSeconds": 3600}

GOOD: list[tuple[str, Any]] = [
    ("spec.scaling", {}),
    # the borders of the cross-field rules
    ("spec.engine.batching", {"minSequences": 64, "maxSequences": 64, "maxBatchedTokens": 64, "minBatchedTokens": 64}),
    ("spec.scaling", {"minReplicas": 3, "maxReplicas": 3}),
    ("spec.model.maxModelLength", 16),
    ("spec.scaling", {"mode": "Manual", "replicas": 0}),
    ("spec.scaling", {"minReplicas": 0}),
    ("spec.scaling", {"maxReplicas": 3, "schedules": [{**WINDOW, "minReplicas": 3, "timeZone": "Europe/Berlin"}]}),
    ("spec.scaling", {"minReplicas": 3, "maxReplicas": 3, "schedules": [{**WINDOW, "minReplicas": 0}]}),
    ("spec.scaling", {"minReplicas": 1, "schedules": [{**WINDOW, "minReplicas": 4, "maxReplicas": 4}]}),
    ("spec.rollout", {"maxSurge": 0, "maxUnavailable": 1}),
    ("spec.slos.1.selector", {"headerValue": "batch"}),
    ("spec.slos.1.selector", {"headerValue": "nightly"}),
    ("spec.slos.0.tpot", None),
    ("spec.slos.0.objectivePercent", "99.95"),
    ("spec.slos.0.objectivePercent", "100"),
    ("spec.model.servedModelNames", ["a", "b"]),
    ("spec.model.servedModelNames", None),
    ("spec.model.source.uri", "file:///srv/model"),
    ("metadata.labels", {"team": "search"}),
    ("metadata.name", "llama-8"),
    ("spec.model.source", {"uri": "pvc://models/llama/8b"}),
    ("spec.model.source", {"uri": "hf://org/Name-1.5", "revision": "refs/pr/1", "digest": DIGEST, "secretName": "hf"}),
    ("spec.model", {"source": {"uri": "s3://bucket.name/models/it's(1)"}, "cache": {"claimName": "models"}}),
    ("spec.model.source.uri", "oci://registry.example:5000/models/llama@sha256:0f"),
    ("spec.variants.0.resources.memoryMebibytes", 513),
    ("spec.variants.0.resources.accelerator", {"resourceName": "amd.com/gpu", "count": 2}),
    ("spec.scheduling", {"nodeSelector": {"zone": "a"}, "tolerations": [{"operator": "Exists"}]}),
    ("spec.scheduling.tolerations", [{"key": "gpu", "value": "a", "effect": "NoExecute", "tolerationSeconds": 30}]),
]

BAD: list[tuple[str, Any, str]] = [
    # cross-field rules
    ("spec.engine.batching", {"minSequences": 9, "maxSequences": 8}, "minSequences must not exceed"),
    ("spec.engine.batching", {"minBatchedTokens": 4096}, "minBatchedTokens must not exceed"),
    ("spec.engine.batching", {"maxSequences": 128, "maxBatchedTokens": 64}, "every running request needs a token"),
    ("spec.scaling", {"minReplicas": 2}, "minReplicas must not exceed"),
    ("spec.scaling", {"mode": "Manual"}, "mode Manual needs replicas"),
    ("spec.scaling", {"schedules": [{**WINDOW, "minReplicas": 2}]}, "what a window does not say, scaling does"),
    ("spec.scaling", {"minReplicas": 1, "schedules": [{**WINDOW, "minReplicas": 3, "maxReplicas": 2}]}, "a window"),
    ("spec.scaling", {"schedules": [WINDOW]}, "a window without bounds changes nothing"),
    ("spec.scaling", {"schedules": [{**WINDOW, "maxReplicas": 1}, {**WINDOW, "maxReplicas": 1}]}, "appears twice"),
    ("spec.scaling", {"schedules": [{**WINDOW, "maxReplicas": 1, "cron": "@daily-please"}]}, "match pattern"),
    ("spec.scaling", {"schedules": [{**WINDOW, "maxReplicas": 1, "timeZone": "../zone"}]}, "match pattern"),
    ("spec.rollout", {"maxSurge": 0}, "must not both be 0"),
    ("spec.slos.1.ttft", None, "ttft or tpot is required"),
    ("spec.model.source", {"uri": "s3://bucket/m", "revision": "v1"}, "revision belongs to hf://"),
    ("spec.model.source.digest", DIGEST, "nothing else is fetched"),
    ("spec.model.source.secretName", "hf", "nothing else is fetched"),
    ("spec.model.source.uri", "pvc://models/a/../../b", "must not climb"),
    ("spec.model.cache", {"claimName": "models"}, "nothing else is fetched"),
    ("spec.variants.0.resources.memoryMebibytes", 512, "must exceed engine.kvCache.memoryMebibytes"),
    ("spec.scheduling.tolerations", [{"value": "yes"}], "operator Equal needs a key"),
    ("spec.scheduling.tolerations", [{"operator": "Exists", "value": "yes"}], "Exists takes no value"),
    ("spec.scheduling.tolerations", [{"operator": "Exists", "tolerationSeconds": 1}], "needs effect NoExecute"),
    ("spec.slos.1.selector", {"headerValue": "interactive"}, "each selector.headerValue must be unique"),
    ("spec.slos.1.selector", {"modelAlias": "capstan-tiny"}, "each selector.modelAlias must be unique"),
    ("spec.slos.0.selector", {"modelAlias": "capstan-tiny-batch"}, "each selector.modelAlias must be unique"),
    # lists of distinct things
    ("spec.slos.1.name", "interactive", "appears twice"),
    ("spec.model.servedModelNames", ["a", "a"], "appears twice"),
    # types and bounds
    ("spec.slos", [], "at least 1 item"),
    ("spec.variants", [], "at least 1 item"),
    ("spec.variants", [{"name": "a"}, {"name": "b"}], "at most 1 item"),
    ("spec.variants.0.resources.accelerator", {"resourceName": "gpu"}, "match pattern"),
    ("spec.variants.0.resources.accelerator", {"count": 0}, "greater than or equal to 1"),
    ("spec.slos.0.ttft.thresholdMilliseconds", 0, "greater than or equal to 1"),
    ("spec.slos.0.ttft.thresholdMilliseconds", "1000", "valid integer"),
    ("spec.slos.0.ttft.thresholdMilliseconds", True, "valid integer"),
    ("spec.slos.0.ttft.thresholdMilliseconds", 0.5, "valid integer"),
    ("spec.slos.0.ttft.percentile", 100, "less than or equal to 99"),
    ("spec.slos.0.objectivePercent", 95, "valid string"),
    ("spec.slos.0.objectivePercent", "101", "match pattern"),
    ("spec.slos.0.name", "Interactive", "match pattern"),
    ("spec.scaling.mode", "auto", "'Auto', 'Shadow' or 'Manual'"),
    ("spec.scaling", [], "an object"),
    ("spec.model.source.uri", "gs://bucket/model", "match pattern"),
    ("spec.model.source.uri", "hf://name", "match pattern"),
    ("spec.model.source.uri", "pvc:///path", "match pattern"),
    ("spec.model.source", {"uri": "hf://a/b", "digest": "sha256:short"}, "match pattern"),
    ("spec.routing.gatewayReplicas", 0, "greater than or equal to 1"),
    ("spec.model.source", None, "required"),
    ("spec.model", None, "required"),
    ("spec", None, "required"),
    ("metadata.name", "a" * 41, "at most 40"),
    ("metadata.name", "8b-chat", "the first a letter: it names a Service"),
    # unknown fields
    ("spec.replicas", 2, "unknown field"),
    ("spec.scaling.minReplica", 1, "did you mean minReplicas?"),
]


@pytest.mark.parametrize(("path", "value"), GOOD)
def test_both_accept(path: str, value: Any) -> None:
    document = changed(path, value)
    assert api_server_refuses(document) == []
    assert pydantic_refuses(document) == []


@pytest.mark.parametrize(("path", "value", "sentence"), BAD)
def test_both_refuse(path: str, value: Any, sentence: str) -> None:
    document = changed(path, value)
    assert api_server_refuses(document) != []
    assert any(sentence in fault for fault in pydantic_refuses(document)), pydantic_refuses(document)


def test_defaults_obey_the_rules_before_anything_is_filled_in() -> None:
    assert as_written(SCHEMA["properties"]["spec"]) == []


def test_a_model_must_hold_a_block() -> None:
    document = changed("spec.model.maxModelLength", 16)
    document["spec"]["engine"]["kvCache"]["blockSize"] = 32
    assert "must be at least engine.kvCache.blockSize" in api_server_refuses(document)[0]
    assert "must be at least engine.kvCache.blockSize" in pydantic_refuses(document)[0]


def test_an_alias_may_not_be_the_resources_own_name() -> None:
    document = changed("spec.model.servedModelNames", None)
    document["spec"]["slos"][1]["selector"]["modelAlias"] = document["metadata"]["name"]
    assert "must differ from metadata.name" in api_server_refuses(document)[0]
    assert "must differ from metadata.name" in pydantic_refuses(document)[0]


# Values near the rules' borders, so that random objects fall on both sides of each.
SMALL = st.integers(0, 5)
LABELS = st.sampled_from(["a", "b", "c"])
SELECTORS = st.fixed_dictionaries({}, optional={"headerValue": LABELS, "modelAlias": st.sampled_from(["m", "n", "d"])})
OBJECTIVE = st.fixed_dictionaries({"thresholdMilliseconds": SMALL})
SLOS = st.lists(
    st.fixed_dictionaries({"name": LABELS}, optional={"selector": SELECTORS, "ttft": OBJECTIVE, "tpot": OBJECTIVE}),
    max_size=3,
)
SPECS = st.fixed_dictionaries(
    {"model": st.fixed_dictionaries(
        {"source": st.fixed_dictionaries(
            {"uri": st.sampled_from(["bundled://x", "hf://a/b", "s3://abc/..", "pvc://c/d"])},
            optional={"revision": st.just("main"), "digest": st.just(DIGEST), "secretName": st.just("s")})},
        optional={"servedModelNames": st.lists(st.sampled_from("mn"), max_size=2),
                  "cache": st.just({"claimName": "c"})}),
     "slos": SLOS},
    optional={
        "scaling": st.fixed_dictionaries(
            {}, optional={"minReplicas": SMALL, "maxReplicas": SMALL, "replicas": SMALL,
                          "mode": st.sampled_from(["Auto", "Manual", "Sometimes"]),
                          "schedules": st.lists(st.builds(lambda bound: {**WINDOW, **bound}, st.fixed_dictionaries(
                              {}, optional={"name": LABELS, "minReplicas": SMALL, "maxReplicas": SMALL})),
                              max_size=2)}),
        "engine": st.fixed_dictionaries({}, optional={"batching": st.fixed_dictionaries(
            {}, optional={"minSequences": SMALL, "maxSequences": SMALL, "minBatchedTokens": SMALL,
                          "maxBatchedTokens": SMALL})}),
        "rollout": st.fixed_dictionaries({}, optional={"maxSurge": SMALL, "maxUnavailable": SMALL}),
        "scheduling": st.fixed_dictionaries({}, optional={"tolerations": st.lists(st.fixed_dictionaries(
            {}, optional={"key": LABELS, "operator": st.sampled_from(["Exists", "Equal"]), "value": LABELS,
                          "effect": st.sampled_from(["NoSchedule", "NoExecute"]), "tolerationSeconds": SMALL}),
            max_size=2)}),
    },
)  # fmt: skip


@given(SPECS)
@settings(max_examples=300)
def test_both_agree_on_any_object(spec: dict[str, Any]) -> None:
    document = {
        "apiVersion": "capstan.dev/v1alpha1",
        "kind": "InferenceDeployment",
        "metadata": {"name": "d"},
        "spec": spec,
    }
    assert bool(api_server_refuses(document)) == bool(pydantic_refuses(document))
