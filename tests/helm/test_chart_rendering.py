"""Whatever the values, the chart gives objects that an API server takes, and the objects that the values ask for."""

import base64
from xml.etree import ElementTree

import helm_python
import kubernetes_validate
import pytest
import yaml
from charts import CHART, DIGEST, ROOT, VALUE_SETS, Object, objects, of_kind, only, release, secret, templates
from dashboards.alerts import ALERTS

from capstan_api import crd, names
from capstan_api.v1alpha1 import parse

KUBERNETES = "1.36.0"
# Kinds of other projects, and the definition of ours: no schema of Kubernetes' own describes what they hold.
FOREIGN = {"PodMonitor", "PrometheusRule"}


def pod_template(found: tuple[Object, ...]) -> Object:
    template: Object = only(found, "Deployment")["spec"]["template"]
    return template


@pytest.mark.parametrize("values", VALUE_SETS)
def test_helm_finds_nothing_to_complain_about(values: str) -> None:
    report = helm_python.lint(CHART, VALUE_SETS[values], strict=True, kube_version=f"v{KUBERNETES}")
    assert report["messages"] == []
    assert report["errors"] == []


@pytest.mark.parametrize("values", VALUE_SETS)
def test_every_object_is_one_that_kubernetes_takes(values: str) -> None:
    found = [each for each in release(values) if each["kind"] not in FOREIGN]
    assert len(found) >= 4
    for each in found:
        kubernetes_validate.validate(each, KUBERNETES, strict=True)


@pytest.mark.parametrize("values", VALUE_SETS)
def test_no_two_objects_are_the_same_and_each_is_told_its_namespace(values: str) -> None:
    keys = [(each["kind"], each["metadata"].get("namespace"), each["metadata"]["name"]) for each in release(values)]
    assert len(keys) == len(set(keys))
    cluster_wide = {
        "CustomResourceDefinition",
        "ClusterRole",
        "ClusterRoleBinding",
        "ValidatingWebhookConfiguration",
    }
    assert [key for key in keys if (key[1] is None) != (key[0] in cluster_wide)] == []


@pytest.mark.parametrize("values", VALUE_SETS)
def test_every_selector_selects_the_operators_and_not_the_test(values: str) -> None:
    found = release(values)
    operators = pod_template(found)["metadata"]["labels"]
    test = only(found, "Pod")["metadata"]["labels"]
    selectors = [
        *(each["spec"]["selector"]["matchLabels"] for each in of_kind(found, "Deployment")),
        *(each["spec"]["selector"] for each in of_kind(found, "Service")),
        *(each["spec"]["selector"]["matchLabels"] for each in of_kind(found, "PodDisruptionBudget")),
        *(each["spec"]["selector"]["matchLabels"] for each in of_kind(found, "PodMonitor")),
        *(each["spec"]["podSelector"]["matchLabels"] for each in of_kind(found, "NetworkPolicy")),
    ]
    assert len(selectors) >= 2
    for selector in selectors:
        assert selector.items() <= operators.items()
        assert not selector.items() <= test.items()


def test_objects_refer_to_each_other_by_their_real_names() -> None:
    for values in VALUE_SETS:
        found = release(values)
        pod = pod_template(found)["spec"]
        accounts = {each["metadata"]["name"] for each in of_kind(found, "ServiceAccount")}
        assert pod["serviceAccountName"] in (accounts or {"somebody"})
        for binding in [*of_kind(found, "RoleBinding"), *of_kind(found, "ClusterRoleBinding")]:
            roles = of_kind(found, binding["roleRef"]["kind"])
            there = [r for r in roles if r["metadata"].get("namespace") == binding["metadata"].get("namespace")]
            assert binding["roleRef"]["name"] in {role["metadata"]["name"] for role in there}
            assert [(s["name"], s["namespace"]) for s in binding["subjects"]] == [(pod["serviceAccountName"], "prod")]
        sources = [(kind, s[kind]["name"]) for s in pod["volumes"][0]["projected"]["sources"] for kind in s]
        own = {("secret", "own-key"), ("secret", "own-certificate")}
        there = {("configMap", each["metadata"]["name"]) for each in of_kind(found, "ConfigMap")}
        there |= {("secret", each["metadata"]["name"]) for each in of_kind(found, "Secret")} or own
        assert set(sources) <= there
        assert len(sources) == len(set(sources)) == (2 if values == "least" else 3)


def test_the_crd_is_the_contracts_own() -> None:
    found = only(release("defaults"), "CustomResourceDefinition")
    assert found["metadata"]["name"] == crd.definition()["metadata"]["name"]
    assert found["spec"] == crd.definition()["spec"]


@pytest.mark.parametrize("keep", [True, False])
def test_crd_and_key_are_kept_together_or_go_together(keep: bool) -> None:
    found = objects({"crds": {"keep": keep}})
    policies = {
        each["metadata"].get("annotations", {}).get("helm.sh/resource-policy")
        for each in (only(found, "CustomResourceDefinition"), secret(found, "-key"))
    }
    assert policies == ({"keep"} if keep else {None})


def test_a_crd_that_is_not_wanted_is_not_there() -> None:
    assert of_kind(release("least"), "CustomResourceDefinition") == []


def test_a_digest_wins_over_a_tag_and_the_default_tag_is_the_charts_own_version() -> None:
    version = yaml.safe_load((CHART / "Chart.yaml").read_text())["appVersion"]
    assert pod_template(release("defaults"))["spec"]["containers"][0]["image"] == f"capstan.dev/capstan:{version}"
    assert pod_template(release("everything"))["spec"]["containers"][0]["image"] == f"capstan.dev/capstan@{DIGEST}"


def test_a_changed_configuration_starts_new_operators_and_an_unchanged_one_does_not() -> None:
    def checksum(values: Object) -> str:
        return str(
            only(objects(values), "Deployment")["spec"]["template"]["metadata"]["annotations"]["checksum/config"]
        )

    assert checksum({}) == checksum({"podDisruptionBudget": {"enabled": False}})
    assert checksum({}) != checksum({"config": {"logLevel": "DEBUG"}})


def test_two_renderings_differ_in_key_and_certificate_alone() -> None:
    def without_secrets(found: list[Object]) -> list[Object]:
        return [each for each in found if each["kind"] not in ("Secret", "ValidatingWebhookConfiguration")]

    first, second = objects({}), objects({})
    assert secret(first, "-key")["data"] != secret(second, "-key")["data"]
    assert secret(first, "-key")["immutable"] is True
    assert without_secrets(first) == without_secrets(second)


def test_a_key_of_ones_own_is_used_and_none_is_made() -> None:
    found = release("everything")
    assert of_kind(found, "Secret") == []
    sources = pod_template(found)["spec"]["volumes"][0]["projected"]["sources"]
    assert {"secret": {"name": "own-key", "items": [{"key": "key", "path": "key"}]}} in sources


def test_a_single_operator_has_no_budget_that_would_stop_a_drain() -> None:
    assert of_kind(objects({"replicas": 1}), "PodDisruptionBudget") == []
    assert only(release("defaults"), "PodDisruptionBudget")["spec"]["maxUnavailable"] == 1


def test_labels_by_which_engines_admit_the_operator_cannot_be_changed() -> None:
    from capstan_operator.world.kubernetes.installation import Installation

    wanted = Installation(engine_image="e", operator_image="o").operator_labels
    for values in VALUE_SETS:
        assert wanted.items() <= pod_template(release(values))["metadata"]["labels"].items()
    assert pod_template(release("everything"))["metadata"]["labels"]["team"] == "infra"


def test_the_operator_may_reach_every_port_that_it_calls_and_nothing_else_inside() -> None:
    policy = only(release("defaults"), "NetworkPolicy")["spec"]
    assert policy["policyTypes"] == ["Ingress", "Egress"]
    [engines] = [rule for rule in policy["egress"] if "to" in rule]
    assert {port["port"] for port in engines["ports"]} == {
        names.PORT_GATEWAY,
        names.PORT_GATEWAY_ADMIN,
        names.PORT_ENGINE,
        names.PORT_ENGINE_ADMIN,
    }
    [peer] = engines["to"]
    assert peer["podSelector"]["matchExpressions"] == [{"key": names.LABEL_DEPLOYMENT, "operator": "Exists"}]


def test_only_named_peers_and_the_test_may_scrape_when_peers_are_named() -> None:
    found = release("everything")
    [rule] = [rule for rule in only(found, "NetworkPolicy")["spec"]["ingress"] if rule["ports"][0]["port"] == "http"]
    monitoring, test = rule["from"]
    assert monitoring == {"namespaceSelector": {"matchLabels": {"name": "monitoring"}}}
    assert test["podSelector"]["matchLabels"].items() <= only(found, "Pod")["metadata"]["labels"].items()


def test_rules_and_dashboards_arrive_as_they_were_generated() -> None:
    found = release("everything")
    generated = ROOT / "dashboards/generated"
    assert only(found, "PrometheusRule")["spec"] == yaml.safe_load((generated / "rules.yaml").read_text())
    shipped = {key: text for each in of_kind(found, "ConfigMap") for key, text in each.get("data", {}).items()}
    for path in generated.glob("*.json"):
        assert yaml.safe_load(shipped[f"capstan-{path.name}"]) == yaml.safe_load(path.read_text())
    boards = [
        each for each in of_kind(found, "ConfigMap") if each["metadata"].get("labels", {}).get("grafana_dashboard")
    ]
    assert len(boards) == len(list(generated.glob("*.json"))) == 3


def test_alerts_lead_to_where_the_installer_keeps_the_runbook() -> None:
    address = "https://wiki.example:8443/capstan/runbook"
    found = objects({"monitoring": {"prometheusRule": {"enabled": True, "runbookUrl": address}}})
    groups = only(found, "PrometheusRule")["spec"]["groups"]
    led = [rule["annotations"]["runbook_url"] for group in groups for rule in group["rules"] if "alert" in rule]
    assert led == [f"{address}#{alert.name.lower()}" for alert in ALERTS]


def test_the_charts_icon_is_a_picture_that_nobody_has_to_fetch() -> None:
    kind, _, data = yaml.safe_load((CHART / "Chart.yaml").read_text())["icon"].partition(";base64,")
    assert kind == "data:image/svg+xml"
    assert ElementTree.fromstring(base64.b64decode(data)).tag == "{http://www.w3.org/2000/svg}svg"


def test_the_chart_ships_no_file_that_nothing_writes_any_more() -> None:
    import helm.generate

    written = {ROOT / path for path in helm.generate.render()}
    shipped = {path for path in (CHART / "files").rglob("*") if path.is_file() and path.suffix != ".pyc"}
    assert shipped - written == {CHART / "files/check.py"}


def test_the_operators_series_keep_the_namespace_of_their_deployment() -> None:
    [endpoint] = only(release("everything"), "PodMonitor")["spec"]["podMetricsEndpoints"]
    assert endpoint["honorLabels"] is True
    ports = {port["name"] for port in pod_template(release("everything"))["spec"]["containers"][0]["ports"]}
    assert endpoint["port"] in ports


def test_nothing_of_other_projects_is_installed_unasked() -> None:
    for values in ("defaults", "namespaced", "least"):
        assert {each["kind"] for each in release(values)} & FOREIGN == set()


def test_templates_in_extra_objects_are_evaluated() -> None:
    found = {each["metadata"]["name"] for each in of_kind(release("everything"), "ConfigMap")}
    assert "demo-more" in found


@pytest.mark.parametrize(("values", "namespace"), [("defaults", "default"), ("namespaced", "team-a")])
def test_the_notes_hold_a_resource_that_is_valid_in_a_namespace_that_is_watched(values: str, namespace: str) -> None:
    notes = templates(VALUE_SETS[values])["templates/NOTES.txt"]
    assert f"kubectl --namespace {namespace} apply -f - <<'END'\n" in notes
    document = notes.partition("<<'END'\n")[2].partition("\nEND\n")[0]
    deployment = parse(yaml.safe_load(document))
    assert f"infd/{deployment.metadata.name}" in notes
    assert f'"model": "{deployment.spec.model.served_model_names[0]}"' in notes
    assert f"deployment/{only(release(values), 'Deployment')['metadata']['name']}\n" in notes


@pytest.mark.parametrize(("values", "warned"), [("defaults", 0), ("least", 2)])
def test_the_notes_say_what_somebody_else_has_to_install(values: str, warned: int) -> None:
    notes = templates(VALUE_SETS[values])["templates/NOTES.txt"]
    assert ("crds.enabled=false" in notes) + ("rbac.create=false" in notes) == warned


def test_long_release_names_give_names_that_kubernetes_takes() -> None:
    for each in objects({}, name="a" * 53):
        longest = 253 if each["kind"] == "ValidatingWebhookConfiguration" else 63
        assert len(each["metadata"]["name"]) <= longest
