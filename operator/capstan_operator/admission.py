"""What the operator says to a resource before the API server stores it: a refusal, warnings, or nothing.

Refused is what could not be understood, and what no engine could ever start with; everything else that speaks against
a spec is a warning. Knows AdmissionReview and no HTTP. The surprising idea: only a change is refused. Whatever was
stored before the cause of a refusal was known may still be scaled, labelled and deleted.
"""

from collections.abc import Iterator, Mapping
from typing import Any, Final, NamedTuple

from capstan_api.footprint import MemoryFigures
from capstan_api.manifest import InvalidResource
from capstan_api.spec import InferenceDeploymentSpec
from capstan_api.v1alpha1 import InferenceDeployment
from capstan_operator.decide import render
from capstan_operator.decide.feasibility import Pace, doubts, have_one_pace, model_key
from capstan_operator.decide.memory import Memory
from capstan_operator.errors import BadReview
from capstan_operator.fleet import Manifest, Resources, known_status, understood
from capstan_operator.world.kubernetes.store import Key

_API_VERSION: Final = "admission.k8s.io/v1"
# Resources that are looked at for what their engines have told. One is enough; the others may know nothing yet.
_MOST_WITNESSES: Final = 8


class Opinion(NamedTuple):
    """`refusal` is empty for what may be stored."""

    refusal: str = ""
    warnings: tuple[str, ...] = ()


def review(document: Any, resources: Resources) -> dict[str, Any]:
    """The answer to an AdmissionReview, decoded from JSON. Raises `BadReview` for anything else."""
    kinds, uid = (_at(document, "apiVersion"), _at(document, "kind")), _at(document, "request", "uid")
    if kinds != (_API_VERSION, "AdmissionReview") or not isinstance(uid, str):
        raise BadReview(f"the body must be an AdmissionReview of {_API_VERSION} with request.uid")
    opinion = _opinion(document["request"], resources)
    answer: dict[str, Any] = {"uid": uid, "allowed": not opinion.refusal}
    if opinion.refusal:
        answer["status"] = {"code": 422, "reason": "Invalid", "message": opinion.refusal}
    if opinion.warnings:
        answer["warnings"] = list(opinion.warnings)
    return {"apiVersion": _API_VERSION, "kind": "AdmissionReview", "response": answer}


def _opinion(request: Mapping[str, Any], resources: Resources) -> Opinion:
    manifest = request.get("object")
    if request.get("operation") not in ("CREATE", "UPDATE") or not isinstance(manifest, dict):
        return Opinion()
    if _at(manifest, "metadata", "deletionTimestamp"):
        # What is on its way out must not be held up.
        return Opinion()
    try:
        asked = understood(manifest)
    except InvalidResource as error:
        return Opinion(refusal=str(error))
    found = doubts(asked.spec, *_known(asked, resources))
    certain = [str(doubt) for doubt in found if doubt.is_certain]
    if certain and _asks_anew(asked.spec, request.get("oldObject")):
        return Opinion(refusal="\n".join(certain), warnings=tuple(str(d) for d in found if not d.is_certain))
    return Opinion(warnings=tuple(str(doubt) for doubt in found))


def _asks_anew(spec: InferenceDeploymentSpec, old: Any) -> bool:
    """Whether more than scaling, routing and the like differs from what is stored."""
    if not isinstance(old, dict):
        return True
    try:
        before = understood(old).spec
    except InvalidResource:
        return True
    return (spec.model, spec.variants, spec.engine) != (before.model, before.variants, before.engine)


def _known(asked: InferenceDeployment, resources: Resources) -> tuple[MemoryFigures | None, Pace]:
    """What engines of the same model have told: (its memory figures, its pace); absent and unknown without any."""
    figures, pace, key = None, Pace(), model_key(asked.spec)
    for manifest in _witnesses(asked, resources):
        memory = Memory.restored(known_status(manifest).memory)
        if figures is None and memory.told is not None and memory.told.of == key:
            figures = memory.told.figures
        if not pace.is_known and _ran_alike(manifest, memory, asked):
            pace = Pace(model=memory.model, lengths=memory.lengths)
        if figures is not None and pace.is_known:
            break
    return figures, pace


def _witnesses(asked: InferenceDeployment, resources: Resources) -> Iterator[Manifest]:
    """The resource itself as it is stored, then others with its source."""
    own = Key(asked.metadata.namespace, asked.metadata.name)
    source = asked.spec.model.source
    wanted = source.model_dump(mode="json", by_alias=True, exclude_none=True)
    # A claim of the same name in another namespace is another claim.
    is_local = source.uri.startswith("pvc://")
    num_seen = 0
    for key in (own, *(k for k in resources.deployments() if k != own)):
        manifest = resources.deployment(key)
        if manifest is None or (is_local and key.namespace != own.namespace):
            continue
        if key == own or _at(manifest, "spec", "model", "source") == wanted:
            yield manifest
            num_seen += 1
        if num_seen == _MOST_WITNESSES:
            return


def _ran_alike(manifest: Manifest, memory: Memory, asked: InferenceDeployment) -> bool:
    """Whether the engines that this memory speaks of are such as are asked for now."""
    try:
        live = understood(manifest)
    except InvalidResource:
        return False
    # After a rollback, and while a rollout has yet to begin, others run than the spec says.
    return memory.revision == render.revision(live) and have_one_pace(live.spec, asked.spec)


def _at(node: Any, *path: str) -> Any:
    for part in path:
        node = node.get(part) if isinstance(node, Mapping) else None
    return node
