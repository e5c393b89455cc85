"""Rights and secrets: the roles allow what is asked for and no more, and the token needs no reading."""

from kubernetes_house import READY, House, resource

from capstan_api.status import InferenceDeploymentStatus
from capstan_operator.world.kubernetes.access import (
    ACCESS,
    PODS,
    Verb,
    Where,
    policy_rules,
)
from capstan_operator.world.kubernetes.resync import resync
from capstan_operator.world.kubernetes.token import admin_token
from capstan_operator.world.kubernetes.world import KubernetesWorld


async def test_the_roles_allow_everything_that_was_asked_for(house: House) -> None:
    await house.turn()
    replica = await house.start()
    await house.turn(resource(routing={"inferencePool": "Enabled"}))
    await house.world.write_status(InferenceDeploymentStatus())
    await house.world.drain_replica(replica, 1)
    await house.turn(resource(disruption={"budget": "Disabled"}, observability={"podMonitor": "Disabled"}))
    await resync(house.cluster.api, house.cluster.store, PODS)
    granted = {
        (verb, group, name)
        for rule in policy_rules(Where.WATCHED)
        for verb in rule["verbs"]
        for group in rule["apiGroups"]
        for name in rule["resources"]
    }
    asked = {(r.verb, r.group, r.resource) for r in house.server.requests if r.resource}
    assert asked <= granted
    assert len(asked) > 15


def test_the_roles_have_no_wildcard_and_secrets_cannot_be_read() -> None:
    for rule in (*policy_rules(Where.WATCHED), *policy_rules(Where.OWN)):
        assert "*" not in (*rule["verbs"], *rule["apiGroups"], *rule["resources"])
        if "secrets" in rule["resources"]:
            assert set(rule["verbs"]) == {"create", "patch"}
    for access in ACCESS:
        assert access.reason
        assert access.verbs <= set(Verb)


async def test_a_missing_token_is_written_again_when_a_pod_misses_it(house: House) -> None:
    await house.turn()
    replica = await house.start()
    house.server.remove("secrets", "llama-admin")
    missing = {"name": "engine", "state": {"waiting": {"reason": "CreateContainerConfigError"}}}
    house.set_status(replica, conditions=READY[:1], containerStatuses=[missing])
    house.clock.now += 31
    await house.turn()
    assert house.server.find("secrets", "llama-admin")


async def test_the_token_is_the_same_after_a_restart_and_different_for_each_resource(house: House) -> None:
    again = house.reborn(resource())
    assert again.world.admin_token == house.world.admin_token
    other = KubernetesWorld(house.cluster, resource(uid="uid-2"))
    assert other.admin_token != house.world.admin_token
    assert admin_token(b"other key", house.world.identity) != house.world.admin_token
