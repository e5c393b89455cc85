"""What is applied to a cluster, as values: valid, restricted, owned, and what the resource asks for."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
from hypothesis import given
from hypothesis import strategies as st
from restricted import violations

from capstan_api import names
from capstan_api.v1alpha1 import InferenceDeployment, parse
from capstan_operator.decide import render
from capstan_operator.errors import ModelNotFound
from capstan_operator.world.kubernetes import engine_pod, gateway, network, optional, sources
from capstan_operator.world.kubernetes.drift import is_as_wanted, stamped
from capstan_operator.world.kubernetes.identity import Component, Identity
from capstan_operator.world.kubernetes.installation import Installation
from capstan_operator.world.kubernetes.quantities import cpu, memory
from capstan_operator.world.kubernetes.token import admin_secret

INSTALLATION = Installation("registry/capstan-engine:1", "registry/capstan:1", operator_namespace="capstan-system")
IDENTITY = Identity("team-a", "llama", "uid-1")
SOURCES = {
    "bundled": {"uri": "bundled://capstan-tiny"},
    "file": {"uri": "file:///srv/my%20model"},
    "pvc": {"uri": "pvc://claim/models/llama"},
    "oci": {"uri": "oci://registry/models/llama:1"},
    "hf": {"uri": "hf://org/llama", "revision": "abc", "secretName": "hub"},
    "s3": {"uri": "s3://bucket/llama"},
}


def deployment(**spec: Any) -> InferenceDeployment:
    return parse(
        {
            "apiVersion": names.API_VERSION,
            "kind": names.KIND,
            "metadata": {"name": "llama", "namespace": "team-a", "uid": "uid-1"},
            "spec": {
                "model": {"source": SOURCES["bundled"]},
                "slos": [{"name": "interactive", "ttft": {"thresholdMilliseconds": 500}}],
                **spec,
            },
        }
    )


def pod_spec(resource: InferenceDeployment) -> dict[str, Any]:
    return engine_pod.pod_spec(resource, IDENTITY, INSTALLATION, "abcdef12", 1500)


def all_objects(resource: InferenceDeployment) -> list[dict[str, Any]]:
    args = render.engine_args(resource, sources.directory(resource.spec.model.source))
    spec = pod_spec(resource)
    return [
        engine_pod.pod(IDENTITY, "llama-abcdef12-0", "abcdef12", spec),
        engine_pod.revision_config(
            IDENTITY, "abcdef12", args, spec, sources.fetch_args(resource.spec.model.source, INSTALLATION)
        ),
        gateway.config(IDENTITY, render.gateway_args(resource)),
        gateway.deployment(resource, IDENTITY, INSTALLATION),
        gateway.service(IDENTITY),
        gateway.engines_service(IDENTITY),
        gateway.service_account(IDENTITY),
        network.engine_policy(IDENTITY, INSTALLATION, source_ports=(443,), scraped=True, pooled=False),
        network.gateway_policy(IDENTITY, INSTALLATION),
        optional.disruption_budget(IDENTITY, 3),
        admin_secret(IDENTITY, "token"),
    ]


def source(kind: str) -> InferenceDeployment:
    return deployment(model={"source": SOURCES[kind]})


@pytest.mark.parametrize("kind", SOURCES)
def test_every_object_is_valid_and_goes_with_its_owner(kind: str) -> None:
    for manifest in all_objects(source(kind)):
        kubernetes_validate.validate(manifest, "1.36", strict=True)
        (owner,) = manifest["metadata"]["ownerReferences"]
        assert owner["uid"] == "uid-1"
        assert owner["controller"] is True
        assert manifest["metadata"]["namespace"] == "team-a"
        assert manifest["metadata"]["labels"][names.LABEL_DEPLOYMENT] == "llama"
        assert len(manifest["metadata"]["name"]) <= 63


def test_the_longest_name_still_gives_valid_names() -> None:
    long = Identity("team-a", "a" * 40, "uid-1")
    revision = "abcdef12"
    for name in (long.gateway, long.engine, long.engines, long.admin_secret, long.revision(revision)):
        assert len(name) <= 63


@pytest.mark.parametrize("kind", SOURCES)
def test_pods_are_restricted(kind: str) -> None:
    resource = source(kind)
    assert violations(pod_spec(resource)) == []
    template = gateway.deployment(resource, IDENTITY, INSTALLATION)["spec"]["template"]
    assert violations(template["spec"]) == []


def test_the_checker_sees_what_is_not_restricted() -> None:
    spec = json.loads(json.dumps(pod_spec(deployment())))
    spec["containers"][0]["securityContext"]["readOnlyRootFilesystem"] = False
    del spec["securityContext"]["runAsNonRoot"]
    spec["volumes"].append({"name": "host", "hostPath": {"path": "/"}})
    assert len(violations(spec)) == 3


@pytest.mark.parametrize(
    ("kind", "path", "volume"),
    [
        ("bundled", "/models/capstan-tiny", None),
        ("file", "/srv/my model", None),
        ("pvc", "/model/models/llama", {"persistentVolumeClaim": {"claimName": "claim", "readOnly": True}}),
        ("oci", "/model", {"image": {"reference": "registry/models/llama:1", "pullPolicy": "IfNotPresent"}}),
    ],
)
def test_a_model_that_is_there_is_mounted_read_only(kind: str, path: str, volume: Mapping[str, Any] | None) -> None:
    resource = source(kind)
    spec = pod_spec(resource)
    assert sources.directory(resource.spec.model.source) == Path(path)
    assert "initContainers" not in spec
    volumes = {v["name"]: v for v in spec["volumes"]}
    assert volumes.get("model") == (None if volume is None else {"name": "model", **volume})
    mounts = [m for m in spec["containers"][0]["volumeMounts"] if m["name"] == "model"]
    assert mounts == ([] if volume is None else [{"name": "model", "mountPath": "/model", "readOnly": True}])


def test_a_fetched_model_is_written_by_the_fetcher_alone() -> None:
    spec = pod_spec(source("hf"))
    (fetch,), (engine,) = spec["initContainers"], spec["containers"]
    assert fetch["envFrom"] == [{"secretRef": {"name": "hub"}}]
    assert "envFrom" not in engine
    assert {"name": "model", "mountPath": "/model"} in fetch["volumeMounts"]
    assert {"name": "model", "mountPath": "/model", "readOnly": True} in engine["volumeMounts"]
    assert fetch["resources"] == engine["resources"], "unequal ones would make the pod Burstable"
    assert fetch["image"] == INSTALLATION.operator_image


def test_a_cache_is_a_claim_and_sources_do_not_share_a_directory_in_it() -> None:
    model = {"source": SOURCES["hf"], "cache": {"claimName": "shelf"}}
    volumes = {v["name"]: v for v in pod_spec(deployment(model=model))["volumes"]}
    assert volumes["model"] == {"name": "model", "persistentVolumeClaim": {"claimName": "shelf"}}
    other = source("hf").spec.model.source.model_copy(update={"revision": "def"})
    assert sources.directory(other) != sources.directory(source("hf").spec.model.source)


@given(st.text(alphabet="a./", max_size=12))
def test_a_claims_path_never_leaves_the_claim(path: str) -> None:
    model_source = source("pvc").spec.model.source.model_copy(update={"uri": f"pvc://claim/{path}"})
    try:
        directory = sources.directory(model_source)
    except ModelNotFound:
        return
    assert directory.is_relative_to(sources.MOUNT)
    assert ".." not in directory.parts


def test_the_pod_gets_what_the_resource_asks_for() -> None:
    resource = deployment(
        variants=[{"name": "default", "resources": {"cpuMillicores": 1500, "memoryMebibytes": 6144}}],
        scheduling={
            "nodeSelector": {"pool": "inference"},
            "tolerations": [{"key": "gpu", "operator": "Exists", "effect": "NoSchedule"}],
            "priorityClassName": "serving",
        },
        disruption={"drainTimeoutSeconds": 90},
    )
    spec = pod_spec(resource)
    assert spec["nodeSelector"] == {"pool": "inference"}
    assert spec["tolerations"] == [{"key": "gpu", "operator": "Exists", "effect": "NoSchedule"}]
    assert spec["priorityClassName"] == "serving"
    assert spec["terminationGracePeriodSeconds"] == 100
    amounts = {"cpu": "1500m", "memory": "6Gi"}
    assert spec["containers"][0]["resources"] == {"requests": amounts, "limits": amounts}


def test_an_accelerator_is_asked_for_by_the_engine_alone_and_limits_what_it_may_use() -> None:
    resources = {"accelerator": {"resourceName": "amd.com/gpu", "count": 2}}
    spec = pod_spec(
        deployment(model={"source": {"uri": "hf://org/name"}}, variants=[{"name": "default", "resources": resources}])
    )
    asked = spec["containers"][0]["resources"]
    assert asked["requests"]["amd.com/gpu"] == asked["limits"]["amd.com/gpu"] == "2"
    fetch = spec["initContainers"][0]["resources"]
    assert {"cpu", "memory"} == fetch["requests"].keys() == fetch["limits"].keys()


def test_the_engines_configuration_is_what_the_engine_reads() -> None:
    resource = deployment(observability={"stepLog": "Enabled"})
    args = render.engine_args(resource, Path("/models/capstan-tiny"))
    config = engine_pod.revision_config(IDENTITY, "abcdef12", args, pod_spec(resource), None)
    assert config["immutable"] is True
    read = type(args).model_validate_json(config["data"]["engine.json"])
    assert (read.host, read.port, read.admin_port) == ("0.0.0.0", 8100, 9100)
    assert read.model == Path("/models/capstan-tiny")
    assert str(read.step_log) == "/tmp/steps.csv"
    assert json.loads(config["data"]["pod.json"]) == pod_spec(resource)


def test_what_bodies_may_hold_in_a_gateway_follows_its_memory() -> None:
    installation = replace(INSTALLATION, gateway_memory_mebibytes=1024)
    template = gateway.deployment(deployment(), IDENTITY, installation)["spec"]["template"]
    assert "--max-body-mebibytes=256" in template["spec"]["containers"][0]["args"]


def test_the_gateways_template_does_not_depend_on_its_arguments() -> None:
    one, other = deployment(), deployment(routing={"hold": {"maxRequests": 7}})
    assert gateway.deployment(one, IDENTITY, INSTALLATION) == gateway.deployment(other, IDENTITY, INSTALLATION)
    assert gateway.config(IDENTITY, render.gateway_args(one)) != gateway.config(IDENTITY, render.gateway_args(other))


def test_engines_that_fetch_nothing_reach_nothing() -> None:
    policy = network.engine_policy(IDENTITY, INSTALLATION, source_ports=(), scraped=False, pooled=False)
    assert policy["spec"]["egress"] == []
    assert policy["spec"]["policyTypes"] == ["Ingress", "Egress"]
    gateways, operators = policy["spec"]["ingress"]
    assert gateways["from"] == [{"podSelector": {"matchLabels": IDENTITY.match(Component.GATEWAY)}}]
    assert [port["port"] for port in gateways["ports"]] == [8100]
    assert [port["port"] for port in operators["ports"]] == [8100, 9100]


def test_nobody_but_the_operator_reaches_an_admin_port() -> None:
    policies = (
        network.engine_policy(IDENTITY, INSTALLATION, source_ports=(443,), scraped=True, pooled=True),
        network.gateway_policy(IDENTITY, INSTALLATION),
    )
    admin = {names.PORT_ENGINE_ADMIN, names.PORT_GATEWAY_ADMIN}
    for policy in policies:
        for rule in policy["spec"]["ingress"]:
            if admin & {port["port"] for port in rule["ports"]}:
                (peer,) = rule["from"]
                assert peer["namespaceSelector"]["matchLabels"] == {"kubernetes.io/metadata.name": "capstan-system"}


def test_monitors_have_the_labels_by_which_a_prometheus_selects_them_and_keep_their_own() -> None:
    labels = {"release": "prometheus", names.LABEL_DEPLOYMENT: "another"}
    made = optional.pod_monitor(IDENTITY, replace(INSTALLATION, pod_monitor_labels=labels))["metadata"]["labels"]
    assert made == {"release": "prometheus", **IDENTITY.labels(Component.ENGINE)}


@pytest.mark.parametrize(("serving", "available"), [(0, 0), (1, 0), (2, 1), (5, 4)])
def test_one_replica_at_a_time_may_be_evicted(serving: int, available: int) -> None:
    assert optional.disruption_budget(IDENTITY, serving)["spec"]["minAvailable"] == available


def test_the_secrets_type_is_its_guard() -> None:
    assert admin_secret(IDENTITY, "token")["type"] == "capstan.dev/admin-token"


@pytest.mark.parametrize(("amount", "text"), [(100, "100m"), (1000, "1"), (1500, "1500m"), (64000, "64")])
def test_processors_are_written_as_kubernetes_writes_them(amount: int, text: str) -> None:
    assert cpu(amount) == text


@pytest.mark.parametrize(("amount", "text"), [(64, "64Mi"), (4096, "4Gi"), (1500, "1500Mi"), (1 << 20, "1Ti")])
def test_memory_is_written_as_kubernetes_writes_it(amount: int, text: str) -> None:
    assert memory(amount) == text


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)
MANIFESTS = st.fixed_dictionaries({"metadata": st.just({"name": "x"}), "spec": VALUES})


@given(MANIFESTS)
def test_what_was_applied_is_as_wanted(manifest: dict[str, Any]) -> None:
    wanted = stamped(manifest)
    assert is_as_wanted(json.loads(json.dumps(wanted)), wanted)
    defaulted = {**wanted, "status": {"x": 1}, "metadata": {**wanted["metadata"], "uid": "u"}}
    assert is_as_wanted(defaulted, wanted)


@given(MANIFESTS, MANIFESTS)
def test_another_manifest_is_not_as_wanted(one: dict[str, Any], other: dict[str, Any]) -> None:
    same = json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)
    assert is_as_wanted(stamped(one), stamped(other)) == same


@pytest.mark.parametrize(
    "live",
    [
        {"spec": {"ports": [{"port": 81}]}},
        {"spec": {"ports": [{"port": 80}, {"port": 81}]}},
        {"spec": {"ports": []}},
        {"spec": {}},
        {"spec": {"ports": [{"port": 80}], "selector": {"app": "ours", "and": "more"}}},
    ],
)
def test_a_field_that_somebody_changed_is_seen(live: dict[str, Any]) -> None:
    assert not is_as_wanted(live, {"spec": {"ports": [{"port": 80}], "selector": {"app": "ours"}}})


def test_defaults_and_other_peoples_fields_are_no_drift() -> None:
    live = {"spec": {"ports": [{"port": 80, "nodePort": 3}], "type": "ClusterIP"}, "metadata": {"labels": {"a": "b"}}}
    assert is_as_wanted(live, {"spec": {"ports": [{"port": 80}]}, "metadata": {"labels": {}}})
