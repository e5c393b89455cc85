"""What a reviewer must be able to rely on: pods are restricted, rights are few, Secrets are never read."""

from copy import deepcopy
from itertools import product
from typing import Any

import pytest
from charts import VALUE_SETS, Object, of_kind, only, release, secret
from pod_security import violations

from capstan_api import names
from capstan_operator.world.kubernetes.access import ACCESS, LEASES, Where

ROLES = ("Role", "ClusterRole")
FORBIDDEN_VERBS = {"*", "escalate", "bind", "impersonate"}


def pods(found: tuple[Object, ...]) -> list[Object]:
    templates = [each["spec"]["template"]["spec"] for each in of_kind(found, "Deployment")]
    return [*templates, *(each["spec"] for each in of_kind(found, "Pod"))]


def rules(found: tuple[Object, ...]) -> list[Object]:
    return [rule for kind in ROLES for role in of_kind(found, kind) for rule in role["rules"]]


def granted(found: list[Object]) -> set[tuple[str, str, str]]:
    """Every (group, resource, verb) of the rules."""
    return {triple for rule in found for triple in product(rule["apiGroups"], rule["resources"], rule["verbs"])}


@pytest.mark.parametrize("values", VALUE_SETS)
def test_every_pod_is_restricted_and_cannot_write_to_its_root(values: str) -> None:
    found = pods(release(values))
    assert len(found) == 2
    assert [fault for pod in found for fault in violations(pod)] == []


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("hostNetwork",), True),
        (("enableServiceLinks",), True),
        (("securityContext", "runAsNonRoot"), False),
        (("securityContext", "runAsUser"), 0),
        (("securityContext", "seccompProfile"), {"type": "Unconfined"}),
        (("containers", 0, "securityContext", "allowPrivilegeEscalation"), True),
        (("containers", 0, "securityContext", "capabilities"), {"drop": []}),
        (("containers", 0, "securityContext", "capabilities"), {"drop": ["ALL"], "add": ["SYS_ADMIN"]}),
        (("containers", 0, "securityContext", "readOnlyRootFilesystem"), False),
        (("containers", 0, "securityContext", "privileged"), True),
        (("containers", 0, "resources"), {}),
        (("volumes", 0), {"name": "host", "hostPath": {"path": "/"}}),
        (("volumes", 1, "emptyDir"), {}),
    ],
)
def test_the_check_of_pods_notices(path: tuple[Any, ...], value: Any) -> None:
    pod = deepcopy(pods(release("defaults"))[0])
    place: Any = pod
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    assert violations(pod) != []


@pytest.mark.parametrize("values", VALUE_SETS)
def test_no_rule_has_a_wildcard_or_leads_to_more_rights(values: str) -> None:
    for rule in rules(release(values)):
        assert "*" not in rule["apiGroups"] + rule["resources"]
        assert not FORBIDDEN_VERBS & set(rule["verbs"])
        assert "rbac.authorization.k8s.io" not in rule["apiGroups"]
        assert not {"pods/exec", "pods/attach", "pods/portforward", "nodes", "namespaces"} & set(rule["resources"])


@pytest.mark.parametrize("values", VALUE_SETS)
def test_secrets_are_written_and_never_read(values: str) -> None:
    verbs = {verb for group, resource, verb in granted(rules(release(values))) if (group, resource) == ("", "secrets")}
    assert verbs <= {"create", "patch"}


@pytest.mark.parametrize("values", ["defaults", "namespaced"])
def test_the_operators_rights_are_its_table_no_more_and_no_less(values: str) -> None:
    found = release(values)
    own = [role for kind in ROLES for role in of_kind(found, kind) if "edit" not in str(role["metadata"]["labels"])]
    table = {
        (access.resource.group, access.rbac_name, verb.value, access.where)
        for access in ACCESS
        for verb in access.verbs
    }
    watched = {(g, r, v) for g, r, v, where in table if where is Where.WATCHED}
    leader = {(g, r, v) for g, r, v, where in table if where is Where.OWN}
    assert leader == {(LEASES.group, LEASES.plural, verb) for verb in ("get", "create", "update")}
    seen = 0
    for role in own:
        expected = leader if role["metadata"]["name"].endswith("-leader") else watched
        assert granted(role["rules"]) == expected
        seen += 1
    assert seen == (2 if values == "defaults" else 3)


def test_namespaced_mode_has_no_right_beyond_its_namespaces() -> None:
    found = release("namespaced")
    assert of_kind(found, "ClusterRole") == of_kind(found, "ClusterRoleBinding") == []
    places = sorted((r["metadata"]["namespace"], r["metadata"]["name"]) for r in of_kind(found, "Role"))
    assert places == [("prod", "demo-capstan-leader"), ("team-a", "demo-capstan"), ("team-b", "demo-capstan")]


def test_people_who_may_view_cannot_change_and_those_who_edit_cannot_touch_the_status() -> None:
    roles = {role["metadata"]["name"]: role for role in of_kind(release("defaults"), "ClusterRole")}
    view, edit = roles["demo-capstan-view"], roles["demo-capstan-edit"]
    assert {verb for _, _, verb in granted(view["rules"])} == {"get", "list", "watch"}
    assert {group for group, _, _ in granted([*view["rules"], *edit["rules"]])} == {names.GROUP}
    assert f"{names.PLURAL}/status" not in {resource for _, resource, _ in granted(edit["rules"])}
    assert "rbac.authorization.k8s.io/aggregate-to-view" not in edit["metadata"]["labels"]


def test_only_the_operators_own_pods_get_its_token() -> None:
    account = only(release("defaults"), "ServiceAccount")
    assert account["automountServiceAccountToken"] is False
    assert all(pod["automountServiceAccountToken"] for pod in pods(release("defaults")))


def test_the_key_is_long_enough_and_reaches_the_operator_as_a_file_only() -> None:
    import base64

    assert len(base64.b64decode(secret(release("defaults"), "-key")["data"]["key"])) >= 32
    pod = pods(release("defaults"))[0]
    assert "env" not in pod["containers"][0]
    assert pod["volumes"][0]["projected"]["defaultMode"] == 0o440
