"""Edits of a resource, drawn from its own schema: values inside and outside their bounds, broken rules, plain garbage.

Knows no operator. Which edits are good is not decided here: the contract's own reader judges each result. The number of
replicas is kept small afterwards, because a valid ten thousand would be obeyed.
"""

import copy
import itertools
import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import yaml
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from capstan_api.manifest import InvalidResource
from capstan_api.v1alpha1 import parse
from cluster.campaign import CRD, resource

Path = tuple[str | int, ...]
Edit = tuple[Path, Any]
_REMOVED = object()
_BASE = {
    "variants": [{"name": "default"}],
    "model": {"source": {"uri": "bundled://capstan-tiny"}, "servedModelNames": ["tiny"]},
    "slos": [
        {"name": "interactive", "ttft": {"thresholdMilliseconds": 500}},
        {"name": "batch", "tpot": {"thresholdMilliseconds": 90}},
    ],
}
_MOST_REPLICAS = 2
_MOST_DRAWS = 6


def manifest(name: str, edits: Iterable[Edit]) -> dict[str, Any]:
    """A resource with these edits made to its spec, as far as they can be made one after the other."""
    made = resource(name, **copy.deepcopy(_BASE))
    for path, value in edits:
        _put(made["spec"], path, value)
    scaling = made["spec"].get("scaling")
    if isinstance(scaling, dict):
        for bound in ("replicas", "minReplicas", "maxReplicas"):
            if isinstance(number := scaling.get(bound), int) and number > _MOST_REPLICAS:
                scaling[bound] = number % (_MOST_REPLICAS + 1) or 1
    return made


def is_valid(made: Mapping[str, Any]) -> bool:
    """What the contract says of a manifest."""
    try:
        parse({**made, "metadata": {**made["metadata"], "namespace": "default", "uid": "1"}})
    except InvalidResource:
        return False
    return True


def draw(count: int, *, valid: bool, garbage: bool = False) -> list[dict[str, Any]]:
    """`count` different specs, all valid or none; the same every time. With `garbage` anything may be anywhere."""
    drawn: dict[str, dict[str, Any]] = {}
    edits = st.lists(_edit(garbage), min_size=1, max_size=3)

    @settings(
        max_examples=_MOST_DRAWS * count,
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(edits)
    def collect(each: list[Edit]) -> None:
        if len(drawn) == count:
            return
        made = manifest("drawn", each)
        if is_valid(made) is valid:
            drawn[json.dumps(made["spec"], sort_keys=True)] = made["spec"]

    collect()
    assert len(drawn) == count, f"only {len(drawn)} different specs in {_MOST_DRAWS * count} draws"
    return list(drawn.values())


def relaxed_crd() -> dict[str, Any]:
    """The CustomResourceDefinition of an API server that takes every spec, as one of another version might."""
    crd: dict[str, Any] = yaml.safe_load(CRD.read_text())
    (version,) = crd["spec"]["versions"]
    schema = version["schema"]["openAPIV3Schema"]
    schema.pop("x-kubernetes-validations", None)
    schema["properties"]["spec"] = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
    for part in ("additionalPrinterColumns", "selectableFields"):
        version.pop(part, None)
    version["subresources"] = {"status": {}}
    return crd


def _edit(garbage: bool) -> st.SearchStrategy[Edit]:
    spec = yaml.safe_load(CRD.read_text())["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]
    places = list(_places(spec))
    options = [_values(schema).map(lambda value, path=path: (path, value)) for path, schema in places]
    if garbage:
        anything = st.sampled_from([None, "x", "", -1, 2.5, True, [], {}, ["x"], {"x": 1}, 10**30, "\x00", "é" * 300])
        paths = [path for path, _ in places] + [path[:-1] for path, _ in places if len(path) > 1]
        options += [st.tuples(st.sampled_from(paths), anything)]
        options += [st.tuples(st.sampled_from(paths).map(lambda path: (*path[:-1], "surprise")), anything)]
    return st.one_of(options)


def _places(schema: Mapping[str, Any], path: Path = ()) -> Iterator[tuple[Path, Mapping[str, Any]]]:
    for name, child in schema.get("properties", {}).items():
        yield from _places(child, (*path, name))
    if schema["type"] == "array":
        yield from _places(schema["items"], (*path, 0))
    elif not schema.get("properties"):
        yield path, schema


def _values(schema: Mapping[str, Any]) -> st.SearchStrategy[Any]:
    removed = st.just(_REMOVED)
    match schema:
        case {"enum": options}:
            return st.sampled_from([*options, "Neither"]) | removed
        case {"type": "integer"}:
            low, high = schema.get("minimum", 0), schema.get("maximum", 2**31 - 1)
            return st.sampled_from([low, high, low - 1, high + 1]) | st.integers(low, high) | removed
        case {"type": "string", "pattern": pattern}:
            fitting = st.from_regex(pattern.replace("$", r"\Z"), alphabet=st.characters(max_codepoint=0x7E))
            return fitting | st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E), max_size=300) | removed
        case {"type": "string"}:
            return st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E), max_size=300) | removed
        case {"type": "object"}:
            return st.dictionaries(st.sampled_from(["zone", "a/b", "A b"]), st.sampled_from(["", "x", "x y"])) | removed
        case {"type": "boolean"}:
            return st.booleans() | removed
    raise AssertionError(f"the schema has a kind of field that is not known here: {schema}")


def _put(target: Any, path: Path, value: Any) -> None:
    for here, following in itertools.pairwise(path):
        if isinstance(target, dict) and isinstance(here, str):
            target = target.setdefault(here, [{}] if following == 0 else {})
        elif isinstance(target, list) and here == 0 and target:
            target = target[0]
        else:
            # Another edit has put something else here.
            return
    last = path[-1]
    if isinstance(target, list) and isinstance(last, int):
        target[last : last + 1] = [] if value is _REMOVED else [value]
    elif isinstance(target, dict) and value is _REMOVED:
        target.pop(last, None)
    elif isinstance(target, dict):
        target[last] = value
