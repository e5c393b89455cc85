"""One loop for each InferenceDeployment: started on first sight, woken by events, ended with the object.

Decides nothing and watches nothing. Loops run only while this operator leads; when it no longer does, they are ended on
the spot, whatever they were doing, because the fence would refuse their writes anyway. A loop that breaks is started
again after a while and never touches another one.

The surprising idea: what identifies a loop is the uid. A resource that is deleted and made again under its name gets a
new loop, and the old one has no further turn.
"""

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final, Protocol

from pydantic import ValidationError

from capstan_api.manifest import InvalidResource
from capstan_api.status import InferenceDeploymentStatus
from capstan_api.v1alpha1 import InferenceDeployment, parse
from capstan_operator.errors import CapstanOperatorError, Gone
from capstan_operator.reconcile import Reconciler, Turn
from capstan_operator.world.base import World
from capstan_operator.world.kubernetes.store import Key

logger = logging.getLogger(__name__)

_LONGEST_PAUSE_S: Final = 60.0
_SPREAD_S: Final = 0.01
_LONGEST_SPREAD_S: Final = 5.0
# Until it is tried once more to tell what could not be told.
_TELL_AGAIN_S: Final = 10.0
Manifest = Mapping[str, Any]


class Resources(Protocol):
    """Where the resources are known; the store is one."""

    def deployment(self, key: Key) -> Manifest | None: ...

    def deployments(self) -> list[Key]: ...


@dataclass(frozen=True)
class Crew:
    """What a fleet is given to work with."""

    reconciler: Callable[[World, Callable[[], InferenceDeployment]], Reconciler]
    world: Callable[[InferenceDeployment], World]
    on_turn: Callable[[Key, Turn], None]
    on_gone: Callable[[Key], None]
    report_invalid: Callable[[Manifest, InvalidResource], Awaitable[None]]
    """Tells in the status that a resource cannot be understood."""
    patience_s: Callable[[], float] = lambda: 0.0
    """How long the first event waits for others: they come in bursts, and one turn answers them all."""


class _Member:
    """The loop of one resource."""

    def __init__(self, key: Key, uid: str) -> None:
        self.key = key
        self.uid = uid
        self.stop = asyncio.Event()
        # Of the fleet: a world only exists once the resource was understood.
        self.wake = asyncio.Event()
        self.world: World | None = None
        self.task: asyncio.Task[None] | None = None
        self._rousing: asyncio.TimerHandle | None = None

    def rouse(self, patience_s: float) -> None:
        if self._rousing is None:
            self._rousing = asyncio.get_running_loop().call_later(patience_s, self._rouse)

    def _rouse(self) -> None:
        self._rousing = None
        self.wake.set()
        if self.world is not None:
            self.world.wake.set()


class Fleet:
    """All loops of this process."""

    def __init__(self, resources: Resources, crew: Crew) -> None:
        self._resources = resources
        self._crew = crew
        self._members: dict[Key, _Member] = {}
        self._leaving: set[asyncio.Task[None]] = set()
        self.leads = False

    def lead(self, leads: bool) -> None:
        """Begin to act for every known resource, or stop acting for any."""
        self.leads = leads
        for key in {*self._resources.deployments(), *self._members}:
            if leads:
                self.wake(key)
            else:
                self._dismiss(key)

    def wake(self, key: Key) -> None:
        """Something concerning this resource has changed: have its loop look, begin or end."""
        manifest, member = self._resources.deployment(key), self._members.get(key)
        # One that is being deleted is left to the garbage collector: a pod started now would only be collected too.
        wanted = manifest is not None and "deletionTimestamp" not in manifest["metadata"] and self.leads
        uid = str(manifest["metadata"]["uid"]) if manifest is not None else ""
        if member is not None and (not wanted or member.uid != uid):
            self._dismiss(key)
            member = None
        if member is not None:
            member.rouse(self._crew.patience_s())
        elif wanted:
            self._engage(key, uid)

    async def close(self) -> None:
        """End all loops and wait for it."""
        self.lead(False)
        while self._leaving:
            await asyncio.wait(self._leaving)

    def _engage(self, key: Key, uid: str) -> None:
        member = _Member(key, uid)
        # Many that begin together are spread a little, so that none waits for all.
        spread_s = min(len(self._members) * _SPREAD_S, _LONGEST_SPREAD_S)
        self._members[key] = member
        member.task = asyncio.create_task(self._look_after(member, spread_s), name=f"{key.namespace}/{key.name}")

    def _dismiss(self, key: Key) -> None:
        member = self._members.pop(key, None)
        if member is None or member.task is None:
            return
        member.stop.set()
        member.task.cancel()
        self._leaving.add(member.task)
        member.task.add_done_callback(self._leaving.discard)
        self._crew.on_gone(key)

    async def _look_after(self, member: _Member, spread_s: float) -> None:
        await asyncio.sleep(random.uniform(0, spread_s))  # noqa: S311 - nothing is guarded by it
        failures = 0
        while not member.stop.is_set():
            member.wake.clear()
            try:
                await self._reconcile(member)
                return
            except Gone:
                return
            except InvalidResource as error:
                # Never understood since this process began: nothing of it is touched until somebody edits it.
                is_told = await self._report(member, error)
                with suppress(TimeoutError):
                    await asyncio.wait_for(member.wake.wait(), None if is_told else _TELL_AGAIN_S)
            except Exception:
                # Whatever it was, it concerns this resource only, which must not be left without a loop for it.
                logger.exception("%s/%s: its loop broke and starts again", member.key.namespace, member.key.name)
                failures += 1
                pause_s = min(2.0**failures, _LONGEST_PAUSE_S)
                await asyncio.sleep(random.uniform(pause_s / 2, pause_s))  # noqa: S311

    async def _reconcile(self, member: _Member) -> None:
        source = _Source(self._resources, member.key, member.uid)
        member.world = self._crew.world(source())
        reconciler = self._crew.reconciler(member.world, source)
        try:
            await reconciler.run(member.stop, lambda turn: self._crew.on_turn(member.key, turn))
        finally:
            member.world = None

    async def _report(self, member: _Member, error: InvalidResource) -> bool:
        """Whether it is told, and nothing is left to be done."""
        manifest = self._resources.deployment(member.key)
        logger.warning("%s/%s cannot be understood: %s", member.key.namespace, member.key.name, error)
        if manifest is None:
            return True
        try:
            await self._crew.report_invalid(manifest, error)
        except CapstanOperatorError as failure:
            logger.warning("%s/%s: its status cannot be written: %s", member.key.namespace, member.key.name, failure)
            return False
        return True


class _Source:
    """The resource as the watch has it; what was read once is not read again until it changes."""

    def __init__(self, resources: Resources, key: Key, uid: str) -> None:
        self._resources = resources
        self._key = key
        self._uid = uid
        self._read: tuple[Manifest, InferenceDeployment] | None = None

    def __call__(self) -> InferenceDeployment:
        """Raises `InvalidResource`, and `Gone` when the resource is, or is another one by now."""
        manifest = self._resources.deployment(self._key)
        if manifest is None or manifest["metadata"]["uid"] != self._uid:
            raise Gone(f"{self._key.namespace}/{self._key.name} was deleted")
        if self._read is None or self._read[0] is not manifest:
            self._read = (manifest, understood(manifest))
        return self._read[1]


def understood(manifest: Manifest) -> InferenceDeployment:
    """The resource in a manifest; raises `InvalidResource` for its spec, with the generation that it has.

    The status is read with more patience: one that another version of this operator wrote counts as none.
    """
    try:
        deployment = parse(
            {key: manifest[key] for key in ("apiVersion", "kind", "metadata", "spec") if key in manifest}
        )
    except InvalidResource as error:
        metadata = manifest.get("metadata")
        generation = metadata.get("generation") if isinstance(metadata, Mapping) else None
        raise InvalidResource(str(error), generation if isinstance(generation, int) else 0) from None
    return deployment.model_copy(update={"status": known_status(manifest)})


def known_status(manifest: Manifest) -> InferenceDeploymentStatus:
    """The status in a manifest, as far as this version understands it."""
    try:
        return InferenceDeploymentStatus.model_validate(manifest.get("status") or {})
    except ValidationError:
        return InferenceDeploymentStatus()
