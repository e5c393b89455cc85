"""The pod of one replica, and the ConfigMap of its revision. Pure.

The surprising idea: a revision writes down the pod's spec beside the engine's arguments. The current revision is built
from the resource as it is now; an older one, wanted again by a rollback, is built as it was.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from capstan_api import names
from capstan_api.engine_args import EngineArgs
from capstan_api.fetch_args import FetchArgs
from capstan_api.spec import Variant
from capstan_api.v1alpha1 import InferenceDeployment
from capstan_operator.world.kubernetes import sources
from capstan_operator.world.kubernetes.container import (
    GRACE_BEYOND_DRAIN_S,
    SCRATCH,
    container,
    mounts,
    port,
    ports,
    probe,
    spread,
    volumes,
)
from capstan_operator.world.kubernetes.hardening import pod_hardening
from capstan_operator.world.kubernetes.identity import Component, Identity
from capstan_operator.world.kubernetes.installation import Installation
from capstan_operator.world.kubernetes.quantities import cpu, memory

ENGINE: Final = "engine"
FETCH: Final = "fetch"
ENGINE_JSON, FETCH_JSON, POD_JSON = "engine.json", "fetch.json", "pod.json"
_PROBE_S: Final = 2
# A load may take long as long as it moves; what does not move is ended by the engine itself, with a reason.
_LONGEST_START_S: Final = 7200


def placed(args: EngineArgs) -> EngineArgs:
    """The arguments with what only a world knows: addresses, ports, processors and the step log's place."""
    return args.model_copy(
        update={
            "host": "0.0.0.0",  # noqa: S104 - a pod has one address of its own, guarded by NetworkPolicy
            "port": names.PORT_ENGINE,
            "admin_port": names.PORT_ENGINE_ADMIN,
            "cpus": (),
            "step_log": Path(SCRATCH, "steps.csv") if args.step_log is not None else None,
        }
    )


def config_name(identity: Identity, revision: str, fetch: FetchArgs | None) -> str:
    """Of the revision's ConfigMap. It cannot be changed, so with another server to fetch from it is another one."""
    name = identity.revision(revision)
    if fetch is None or fetch.endpoint is None:
        return name
    return f"{name}-{hashlib.sha256(fetch.endpoint.model_dump_json().encode()).hexdigest()[:8]}"


def revision_config(
    identity: Identity, revision: str, args: EngineArgs, pod_spec: Mapping[str, Any], fetch: FetchArgs | None
) -> dict[str, Any]:
    """The immutable ConfigMap that the pods of the revision are started with."""
    data = {
        ENGINE_JSON: placed(args).model_dump_json(indent=2),
        POD_JSON: json.dumps(pod_spec, sort_keys=True),
    }
    if fetch is not None:
        data[FETCH_JSON] = fetch.model_dump_json(indent=2)
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": identity.metadata(config_name(identity, revision, fetch), Component.ENGINE, revision),
        "data": data,
        "immutable": True,
    }


def pod(identity: Identity, replica_id: str, revision: str, pod_spec: Mapping[str, Any]) -> dict[str, Any]:
    """The pod of a replica."""
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": identity.metadata(replica_id, Component.ENGINE, revision),
        "spec": pod_spec,
    }


def pod_spec(
    deployment: InferenceDeployment,
    identity: Identity,
    installation: Installation,
    revision: str,
    cpu_millicores: int,
) -> dict[str, Any]:
    """What the pods of a revision are: one engine, and before it a fetcher when the model has to be downloaded."""
    spec = deployment.spec
    amounts = {"cpu": cpu(cpu_millicores), "memory": memory(spec.variant.resources.memory_mebibytes)}
    model = sources.volume(spec.model)
    scheduling = spec.scheduling
    placement = {
        "nodeSelector": dict(scheduling.node_selector),
        "tolerations": [t.model_dump(mode="json", by_alias=True, exclude_none=True) for t in scheduling.tolerations],
        "priorityClassName": scheduling.priority_class_name,
    }
    return {
        **pod_hardening(installation, identity.engine),
        **{field: value for field, value in placement.items() if value},
        "restartPolicy": "Always",
        "terminationGracePeriodSeconds": spec.disruption.drain_timeout_seconds + GRACE_BEYOND_DRAIN_S,
        "topologySpreadConstraints": [spread(identity, Component.ENGINE)],
        "volumes": volumes(
            config_name(identity, revision, sources.fetch_args(spec.model.source, installation)),
            "1Gi",
            {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": "64Mi"}},
            *([model] if model else []),
        ),
        **(
            {"initContainers": [_fetch(spec.model.source.secret_name, identity, installation, amounts)]}
            if spec.model.source.is_fetched
            else {}
        ),
        "containers": [
            _engine(identity, installation, amounts | _devices(spec.variant), has_model_volume=model is not None)
        ],
    }


def _devices(variant: Variant) -> dict[str, str]:
    """Extended resources; a node gives as much of them as is asked for and no more, so they are limits as well."""
    accelerator = variant.resources.accelerator
    return {accelerator.resource_name: str(accelerator.count)} if accelerator is not None else {}


def _engine(
    identity: Identity, installation: Installation, amounts: Mapping[str, str], *, has_model_volume: bool
) -> dict[str, Any]:
    image, module = installation.engine_image, "capstan_engine"
    return {
        **container(ENGINE, identity, installation, image=image, module=module, config=ENGINE_JSON),
        "ports": ports(names.PORT_ENGINE, names.PORT_ENGINE_ADMIN),
        "resources": {"requests": dict(amounts), "limits": dict(amounts)},
        "startupProbe": probe("/startupz", period_s=_PROBE_S, failures=_LONGEST_START_S // _PROBE_S),
        "readinessProbe": probe("/readyz", period_s=_PROBE_S, failures=2),
        "livenessProbe": probe("/livez", period_s=10, failures=3),
        "volumeMounts": mounts(
            {"name": "shm", "mountPath": "/dev/shm"},  # noqa: S108 - an emptyDir of the pod's own
            *([{"name": sources.VOLUME, "mountPath": sources.MOUNT, "readOnly": True}] if has_model_volume else []),
        ),
    }


def _fetch(
    secret_name: str | None, identity: Identity, installation: Installation, amounts: Mapping[str, str]
) -> dict[str, Any]:
    image, module = installation.operator_image, "capstan_fetch"
    return {
        **container(FETCH, identity, installation, image=image, module=module, config=FETCH_JSON),
        **({"envFrom": [{"secretRef": {"name": secret_name}}]} if secret_name else {}),
        # The progress is asked for where the engine's will be.
        "ports": [port("fetch", names.PORT_ENGINE_ADMIN)],
        # The engine's own amounts: a pod needs the larger of the two, and equal ones keep it Guaranteed. No device is
        # needed to fetch.
        "resources": {"requests": dict(amounts), "limits": dict(amounts)},
        "volumeMounts": mounts({"name": sources.VOLUME, "mountPath": sources.MOUNT}),
    }
