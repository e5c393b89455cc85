"""The webhook in the chart: it is trusted, reached and asked for what it judges, and it is never in the way."""

import base64
import ssl
from pathlib import Path
from typing import Any

import cel
import helm_python
import pytest
from charts import CHART, VALUE_SETS, Object, objects, of_kind, only, release, secret
from cryptography import x509

from capstan_api import crd, names
from capstan_operator.config import read_config
from capstan_operator.webhook import PATH, Certificate

SERVED = [name for name, values in VALUE_SETS.items() if values.get("admission", {}).get("enabled", True)]


def hook(found: tuple[Object, ...] | list[Object]) -> Object:
    [one] = only(found, "ValidatingWebhookConfiguration")["webhooks"]
    return dict(one)


def service(found: tuple[Object, ...] | list[Object]) -> Object:
    [one] = [each for each in of_kind(found, "Service") if each["metadata"]["name"].endswith("-admission")]
    return one


def container(found: tuple[Object, ...] | list[Object]) -> Object:
    [one] = only(found, "Deployment")["spec"]["template"]["spec"]["containers"]
    return dict(one)


@pytest.mark.parametrize("values", SERVED)
def test_a_webhook_that_does_not_answer_is_never_in_the_way(values: str) -> None:
    found = hook(release(values))
    assert (found["failurePolicy"], found["timeoutSeconds"], found["sideEffects"]) == ("Ignore", 3, "None")
    assert found["matchPolicy"] == "Equivalent"


@pytest.mark.parametrize("values", SERVED)
def test_only_creating_and_changing_a_spec_is_judged(values: str) -> None:
    found = hook(release(values))
    [rule] = found["rules"]
    versions = [version["name"] for version in crd.definition()["spec"]["versions"]]
    # Neither status nor scale: they are subresources, and would have to be listed.
    assert rule == {
        "apiGroups": [names.GROUP],
        "apiVersions": versions,
        "resources": [names.PLURAL],
        "operations": ["CREATE", "UPDATE"],
        "scope": "Namespaced",
    }
    [condition] = found["matchConditions"]
    stored = {"metadata": {"labels": {}}, "spec": {"scaling": {"replicas": 1}}}
    for old, new, judged in (
        (None, stored, True),
        (stored, {**stored, "metadata": {"labels": {"team": "search"}}}, False),
        (stored, {**stored, "spec": {"scaling": {"replicas": 2}}}, True),
    ):
        assert cel.evaluate(condition["expression"], {"object": new, "oldObject": old}) is judged


def test_only_watched_namespaces_are_judged() -> None:
    [expression] = hook(release("namespaced"))["namespaceSelector"]["matchExpressions"]
    assert expression == {"key": "kubernetes.io/metadata.name", "operator": "In", "values": ["team-a", "team-b"]}
    assert "namespaceSelector" not in hook(release("defaults"))


@pytest.mark.parametrize("values", SERVED)
def test_the_api_server_reaches_every_operator_where_it_listens(values: str, tmp_path: Path) -> None:
    found = release(values)
    asked = hook(found)["clientConfig"]["service"]
    behind = service(found)
    [port] = behind["spec"]["ports"]
    assert asked == {"name": behind["metadata"]["name"], "namespace": "prod", "path": PATH, "port": port["port"]}
    listening = {each["name"]: each["containerPort"] for each in container(found)["ports"]}
    config = tmp_path / "operator.yaml"
    name = only(found, "Deployment")["metadata"]["name"]
    [written] = [each for each in of_kind(found, "ConfigMap") if each["metadata"]["name"] == name]
    config.write_text(written["data"]["operator.yaml"])
    assert listening[port["targetPort"]] == read_config(config).admission.port
    ingress = only(found, "NetworkPolicy")["spec"]["ingress"]
    [rule] = [rule for rule in ingress if rule["ports"] == [{"port": port["targetPort"], "protocol": "TCP"}]]
    # From everywhere, unless it is known where the API server asks from.
    assert rule.get("from") == VALUE_SETS[values].get("networkPolicy", {}).get("admissionFrom")


@pytest.mark.parametrize("values", SERVED)
def test_the_operator_finds_the_certificate_where_its_configuration_says(values: str) -> None:
    found = release(values)
    pod = only(found, "Deployment")["spec"]["template"]["spec"]
    [mount] = [each for each in container(found)["volumeMounts"] if each["name"] == "config"]
    [volume] = [each["projected"] for each in pod["volumes"] if each["name"] == "config"]
    [source] = [each["secret"] for each in volume["sources"] if each.get("secret", {}).get("optional")]
    paths = {f"{mount['mountPath']}/{item['path']}" for item in source["items"]}
    [written] = [each for each in of_kind(found, "ConfigMap") if "operator.yaml" in each.get("data", {})]
    assert paths == {"/etc/capstan/tls.crt", "/etc/capstan/tls.key"}
    assert all(path in written["data"]["operator.yaml"] for path in paths)
    own = VALUE_SETS[values].get("admission", {}).get("certificate", {}).get("secretName")
    assert source["name"] == (own or secret(found, "-admission")["metadata"]["name"])


def test_the_certificate_that_the_chart_makes_is_trusted_for_the_services_name(tmp_path: Path) -> None:
    for found in (objects({}), objects({}, name="a" * 53, namespace="b" * 63)):
        made = secret(found, "-admission")
        assert made["type"] == "kubernetes.io/tls"
        pem = {name: base64.b64decode(text) for name, text in made["data"].items()}
        assert base64.b64decode(hook(found)["clientConfig"]["caBundle"]) == pem["tls.crt"]
        issued = x509.load_pem_x509_certificate(pem["tls.crt"])
        names_in_it = issued.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        asked = hook(found)["clientConfig"]["service"]
        assert names_in_it.get_values_for_type(x509.DNSName) == [f"{asked['name']}.{asked['namespace']}.svc"]
        for name, content in pem.items():
            (tmp_path / name).write_bytes(content)
        served = Certificate(tmp_path / "tls.crt", tmp_path / "tls.key")
        served.look()
        assert served.is_loaded
        ssl.create_default_context(cadata=pem["tls.crt"].decode())


def test_a_certificate_of_ones_own_is_used_with_what_makes_it_trusted() -> None:
    found = release("everything")
    assert hook(found)["clientConfig"]["caBundle"] == "Y2E="
    annotations = only(found, "ValidatingWebhookConfiguration")["metadata"]["annotations"]
    assert annotations == {"cert-manager.io/inject-ca-from": "prod/own-certificate"}
    injected = objects({"admission": {"certificate": {"secretName": "own"}, "annotations": annotations}})
    assert "caBundle" not in hook(injected)["clientConfig"]


def test_a_certificate_that_nobody_would_trust_is_refused() -> None:
    with pytest.raises(helm_python.HelmError, match=r"set admission\.certificate\.caBundle, or"):
        objects({"admission": {"certificate": {"secretName": "own"}}})


def test_releases_of_one_name_do_not_share_what_belongs_to_the_cluster() -> None:
    configurations: list[Any] = [
        only(objects({}, namespace=place), "ValidatingWebhookConfiguration") for place in ("team-a", "team-b")
    ]
    first, second = (each["metadata"]["name"] for each in configurations)
    assert first != second


def test_without_admission_nothing_of_it_is_there() -> None:
    found = release("least")
    assert of_kind(found, "ValidatingWebhookConfiguration") == []
    assert not any("admission" in each["metadata"]["name"] for each in found)
    assert [port["name"] for port in container(found)["ports"]] == ["http"]
    assert (CHART / "templates/admission.yaml").exists()
