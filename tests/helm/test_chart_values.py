"""The values are a closed contract: what is not understood is refused before anything is installed."""

import json
from pathlib import Path

import helm_python
import jsonschema
import pytest
import yaml
from charts import CHART, VALUE_SETS, Object, objects, only, release
from helm.values import GIVEN, GIVEN_OF_LEASE, Values

from capstan_operator.config import OperatorConfig, read_config
from helm import forms

SCHEMA = json.loads((CHART / "values.schema.json").read_text("utf-8"))


def refused(values: Object) -> str:
    """What Helm says; empty when it takes them."""
    with helm_python.Chart.load(CHART) as chart:
        try:
            chart.validate_schema(values)
        except helm_python.HelmValuesError as error:
            return str(error)
    return ""


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"replica": 2}, "replica"),
        ({"replicas": 0}, "replicas"),
        ({"replicas": "2"}, "replicas"),
        ({"image": {"name": "capstan"}}, "name"),
        ({"image": {"digest": "sha256:short"}}, "digest"),
        ({"imagePullPolicy": "Sometimes"}, "imagePullPolicy"),
        ({"watchNamespaces": ["Team"]}, "watchNamespaces"),
        ({"watchNamespaces": "team"}, "watchNamespaces"),
        ({"crds": {"enabled": "yes"}}, "crds"),
        ({"resources": {"limits": {"memory": "lots"}}}, "memory"),
        ({"resources": {"limits": {"cpu": "1"}}}, "cpu"),
        ({"config": {"loglevel": "DEBUG"}}, "loglevel"),
        ({"config": {"logLevel": "LOUD"}}, "logLevel"),
        ({"config": {"keyFile": "/tmp/key"}}, "keyFile"),
        ({"config": {"podMonitorLabels": {"release": "x"}}}, "podMonitorLabels"),
        # Services are called after it.
        ({"fullnameOverride": "my.capstan"}, "fullnameOverride"),
        ({"nameOverride": "2nd"}, "nameOverride"),
        ({"config": {"lease": {"enabled": False}}}, "enabled"),
        ({"monitoring": {"podMonitor": {"interval": "often"}}}, "interval"),
        ({"monitoring": {"prometheusRule": {"runbookUrl": "https://wiki/page#part"}}}, "runbookUrl"),
        ({"networkPolicy": {"apiServerPorts": [70000]}}, "apiServerPorts"),
        ({"admission": {"certificate": {"caBundle": "-----BEGIN"}}}, "caBundle"),
        ({"config": {"admission": {"port": 1}}}, "admission"),
    ],
)
def test_what_is_not_understood_is_refused_by_its_name(values: Object, named: str) -> None:
    assert named in refused(values)


@pytest.mark.parametrize("values", VALUE_SETS)
def test_what_is_understood_is_taken(values: str) -> None:
    assert refused(VALUE_SETS[values]) == ""


def test_a_parent_chart_may_set_globals() -> None:
    assert refused({"global": {"anything": {"at": "all"}}}) == ""


def test_every_object_in_the_schema_is_closed_or_says_that_it_is_free() -> None:
    jsonschema.Draft7Validator.check_schema(SCHEMA)

    def open_objects(node: Object, path: str) -> list[str]:
        found = []
        if "properties" in node and node.get("additionalProperties") is not False:
            found.append(path)
        for key, child in node.get("properties", {}).items():
            found += open_objects(child, f"{path}.{key}")
        return found

    assert open_objects(SCHEMA, "") == []


def test_the_default_values_are_the_models_own() -> None:
    written = yaml.safe_load((CHART / "values.yaml").read_text("utf-8"))
    assert written == Values().model_dump(mode="json", by_alias=True)


def test_every_value_is_explained_in_the_file_and_in_the_table() -> None:
    text = (CHART / "values.yaml").read_text("utf-8")
    table = (CHART / "README.md").read_text("utf-8")
    leaves = list(forms.leaves(Values))
    assert len(leaves) > 60
    for path, node, sentence in leaves:
        assert sentence, path
        assert f"| `{path}` |" in table
        if "default" in node and not path.startswith("config."):
            key = path.rpartition(".")[2]
            assert f"{key}:" in text


def test_every_value_is_read_by_a_template() -> None:
    sources = "".join(path.read_text("utf-8") for path in (CHART / "templates").rglob("*.*"))
    unread = {"global"}
    tops = set(SCHEMA["properties"]) - unread
    assert [key for key in sorted(tops) if f".Values.{key}" not in sources] == []


def configuration(found: tuple[Object, ...] | list[Object], folder: Path) -> OperatorConfig:
    """The configuration of a release, as the operator itself reads it."""
    name = only(found, "Deployment")["metadata"]["name"]
    [config] = [each for each in found if each["kind"] == "ConfigMap" and each["metadata"]["name"] == name]
    path = folder / "operator.yaml"
    path.write_text(config["data"]["operator.yaml"], encoding="utf-8")
    return read_config(path)


@pytest.mark.parametrize("values", VALUE_SETS)
def test_the_operator_takes_the_configuration_that_the_chart_writes(values: str, tmp_path: Path) -> None:
    found = release(values)
    config = configuration(found, tmp_path)
    [container] = only(found, "Deployment")["spec"]["template"]["spec"]["containers"]
    assert config.images.operator == container["image"]
    assert config.watch_namespaces == VALUE_SETS[values].get("watchNamespaces", [])
    assert config.key_file == Path("/etc/capstan/key")
    webhook = {config.admission.port} if config.admission.certificate_file else set()
    assert {port["containerPort"] for port in container["ports"]} == {config.health_port} | webhook


def test_what_is_set_under_config_reaches_the_operator_and_what_the_chart_gives_stays(tmp_path: Path) -> None:
    config = configuration(release("everything"), tmp_path)
    assert config.log_level == "DEBUG"
    assert config.lease.duration_seconds == 20
    assert config.lease.name == "inference"
    assert config.gateway.cpu_millicores == 500
    assert config.images.engine == "registry.example/engine:cuda"
    assert config.images.pull_secrets == ["registry"]
    assert config.installation().pod_monitor_labels == {"release": "prometheus"}


def test_every_key_of_the_operators_configuration_is_settable_or_given_by_the_chart() -> None:
    settable = SCHEMA["properties"]["config"]["properties"]
    known = forms.structural(OperatorConfig)["properties"]
    assert set(settable) | set(GIVEN) == set(known)
    assert set(settable["lease"]["properties"]) | set(GIVEN_OF_LEASE) == set(known["lease"]["properties"])


def test_the_lease_of_a_release_carries_its_name(tmp_path: Path) -> None:
    assert configuration(objects({}, name="blue"), tmp_path).lease.name == "blue-capstan"
    assert configuration(objects({}, name="capstan"), tmp_path).lease.name == "capstan"
