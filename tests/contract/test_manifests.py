"""Manifests are read as Kubernetes reads them, written back unchanged, and explained when they are wrong."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from capstan_api.v1alpha1 import InferenceDeployment, InvalidResource, load, parse

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = sorted((ROOT / "crds/examples").glob("*.yaml"))

MINIMAL = """\
apiVersion: capstan.dev/v1alpha1
kind: InferenceDeployment
metadata: {name: d}
spec:
  model: {source: {uri: "bundled://capstan-tiny"}}
  slos: [{name: chat, ttft: {thresholdMilliseconds: 500}}]
"""


def faults(document: Any) -> list[str]:
    with pytest.raises(InvalidResource) as caught:
        parse(document)
    return str(caught.value).splitlines()


def faults_of_text(text: str, tmp_path: Path) -> list[str]:
    path = tmp_path / "resource.yaml"
    path.write_text(text)
    with pytest.raises(InvalidResource) as caught:
        load(path)
    return str(caught.value).splitlines()


def test_there_are_examples() -> None:
    assert {path.stem for path in EXAMPLES} >= {"quickstart", "two-classes", "scale-to-zero"}


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_examples_load_and_survive_a_round_trip(path: Path) -> None:
    resource = load(path)
    assert parse(yaml.safe_load(yaml.safe_dump(resource.document()))) == resource


@pytest.mark.parametrize("document", ["README.md", "ARCHITECTURE.md"])
def test_manifests_in_the_documents_are_valid(document: str) -> None:
    blocks = re.findall(r"^```yaml\n(.*?)^```", (ROOT / document).read_text("utf-8"), re.MULTILINE | re.DOTALL)
    for block in blocks:
        if "kind: InferenceDeployment" in block:
            parse(yaml.safe_load(block))
    assert blocks or document != "README.md"


def test_a_minimal_resource_gets_the_defaults(tmp_path: Path) -> None:
    path = tmp_path / "d.yaml"
    path.write_text(MINIMAL)
    resource = load(path)
    assert resource.served_model_names == ("d",)
    assert resource.spec.variant.name == "default"
    assert resource.spec.scaling.max_replicas == 1
    assert resource.spec.scaling.behavior.scale_down.stabilization_window_seconds == 1200


def test_other_metadata_passes_through() -> None:
    document = yaml.safe_load(MINIMAL)
    document["metadata"] |= {"resourceVersion": "7", "annotations": {"a": "b"}}
    assert parse(document).document()["metadata"]["resourceVersion"] == "7"


def test_every_fault_gets_one_line_with_its_path() -> None:
    document = yaml.safe_load(MINIMAL)
    document["metadata"]["name"] = "Bad_Name"
    document["spec"]["model"]["source"]["uri"] = "gs://bucket"
    document["spec"]["slos"][0]["ttft"]["thresholdMilliseconds"] = "500"
    document["spec"]["scaling"] = {"minReplica": 1, "maxReplicas": 0}
    lines = faults(document)
    assert [line.partition(":")[0] for line in lines] == [
        "metadata.name",
        "spec.model.source.uri",
        "spec.slos[0].ttft.thresholdMilliseconds",
        "spec.scaling.maxReplicas",
        "spec.scaling.minReplica",
    ]


def test_an_unknown_field_is_refused_with_its_path_and_a_suggestion() -> None:
    document = yaml.safe_load(MINIMAL)
    document["spec"]["slos"][0]["tfft"] = {}
    assert faults(document) == ["spec.slos[0].tfft: unknown field; did you mean ttft?"]
    document = yaml.safe_load(MINIMAL)
    document["spec"]["model"]["cache"] = {"zzz": 1, "claimName": "models"}
    assert faults(document) == ["spec.model.cache.zzz: unknown field; known here: claimName"]


def test_snake_case_is_refused_in_manifests() -> None:
    document = yaml.safe_load(MINIMAL)
    document["spec"]["scaling"] = {"max_replicas": 2}
    assert faults(document) == ["spec.scaling.max_replicas: unknown field; did you mean maxReplicas?"]


def test_a_fault_quotes_what_the_field_is_for() -> None:
    document = yaml.safe_load(MINIMAL)
    del document["spec"]["slos"][0]["ttft"]["thresholdMilliseconds"]
    assert faults(document) == [
        "spec.slos[0].ttft.thresholdMilliseconds: required (Longest latency that counts as good)"
    ]


@pytest.mark.parametrize(
    ("document", "sentence"),
    [
        (None, "expected a mapping with apiVersion capstan.dev/v1alpha1, got NoneType"),
        ([], "expected a mapping with apiVersion capstan.dev/v1alpha1, got list"),
        ({"apiVersion": "v1", "kind": "Pod"}, "apiVersion: input should be 'capstan.dev/v1alpha1'"),
        ({"metadata": {"name": float("nan")}}, "the document cannot be written as JSON"),
    ],
)
def test_what_is_no_resource_is_refused_in_one_sentence(document: Any, sentence: str) -> None:
    assert faults(document)[0].startswith(sentence)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("a: [", "is not valid YAML"),
        ("", "holds 0 documents"),
        (MINIMAL + "---\n" + MINIMAL, "holds 2 documents"),
        (MINIMAL + "spec: {}\n", "the key 'spec' appears twice"),
        ("a: !!python/object/apply:os.system [id]", "is not valid YAML"),
        ("[" * 5000, "is not valid YAML"),
        ("&a [*a]", "got list"),
        ("x: &a {y: *a}", "cannot be written as JSON"),
    ],
)
def test_broken_files_give_a_sentence_and_no_traceback(text: str, sentence: str, tmp_path: Path) -> None:
    (line,) = faults_of_text(text, tmp_path)
    assert sentence in line


def test_bytes_that_are_no_text_give_a_sentence(tmp_path: Path) -> None:
    path = tmp_path / "resource.yaml"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InvalidResource, match="is not valid YAML"):
        load(path)


def test_dates_are_text_as_in_kubernetes(tmp_path: Path) -> None:
    path = tmp_path / "resource.yaml"
    path.write_text(MINIMAL.replace("{name: d}", "{name: d, annotations: {released: 2024-01-31}}"))
    assert load(path).metadata.annotations == {"released": "2024-01-31"}


NAMES = st.from_regex(r"[a-z0-9]([a-z0-9-]{0,10}[a-z0-9])?", fullmatch=True)
THRESHOLDS = st.fixed_dictionaries(
    {"thresholdMilliseconds": st.integers(1, 3_600_000), "percentile": st.integers(50, 99)}
)
SLOS = st.lists(
    st.fixed_dictionaries(
        {"name": NAMES, "ttft": THRESHOLDS}, optional={"priority": st.integers(-1000, 1000), "tpot": THRESHOLDS}
    ),
    min_size=1,
    max_size=4,
    unique_by=lambda slo: slo["name"],
)


@given(
    NAMES.filter(lambda name: name[0].isalpha()),
    SLOS,
    st.integers(0, 9),
    st.integers(10, 99),
    st.sampled_from(["Auto", "Float32", "BFloat16"]),
)
@settings(max_examples=100)
def test_written_resources_read_back_equal(
    name: str, slos: list[dict[str, Any]], fewest: int, most: int, precision: str
) -> None:
    resource = InferenceDeployment.model_validate(
        {
            "metadata": {"name": name},
            "spec": {
                "model": {"source": {"uri": "bundled://x"}},
                "variants": [{"name": "v", "precision": precision}],
                "slos": slos,
                "scaling": {"min_replicas": fewest, "max_replicas": most},
            },
        }
    )
    assert parse(resource.document()) == resource
    assert parse(yaml.safe_load(yaml.safe_dump(resource.document()))) == resource
