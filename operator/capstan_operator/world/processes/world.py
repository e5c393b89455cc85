"""`ProcessesWorld`: one InferenceDeployment as child processes of this one.

Decides nothing. Each child gets free loopback ports, a configuration file and a log file under the run directory, a
session of its own (so that Ctrl-C reaches only us) and a token for its admin port that exists in its environment only.
The gateway is the endpoint that clients know: it keeps its port over restarts, and takes another configuration while it
serves.
"""

import asyncio
import os
import secrets
import socket
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from capstan_api import names
from capstan_api.engine_args import EngineArgs, GatewayArgs
from capstan_api.status import DecisionStatus, InferenceDeploymentStatus
from capstan_api.v1alpha1 import InferenceDeployment
from capstan_operator.bounded_http import BoundedHttp
from capstan_operator.decide.seen.observation import Phase
from capstan_operator.errors import AdminError, WorldError
from capstan_operator.settings import OperatorSettings
from capstan_operator.world.base import GatewayFacts, ReplicaFacts
from capstan_operator.world.processes.checkpoints import checkpoint_directory
from capstan_operator.world.processes.child import Child, Launch
from capstan_operator.world.processes.processors import Processors

ENGINE_COMMAND = (sys.executable, "-m", "capstan_engine")
GATEWAY_COMMAND = (sys.executable, "-m", "capstan_gateway")
_GATEWAY = "gateway"


class ProcessesWorld:
    """Implements `World`. Must be made and closed inside a running event loop.

    `gateway_port` is where clients are served; 0 takes a free port. Raises `WorldError` when the run directory cannot
    be written.
    """

    def __init__(
        self,
        run_dir: Path,
        *,
        gateway_port: int = names.PORT_GATEWAY,
        settings: OperatorSettings | None = None,
        engine_command: Sequence[str] = ENGINE_COMMAND,
        gateway_command: Sequence[str] = GATEWAY_COMMAND,
        model_directory: Callable[[str], Path] = checkpoint_directory,
    ) -> None:
        self.admin_token = secrets.token_urlsafe(32)
        self.wake = asyncio.Event()
        self.processors = Processors(_processors())
        self._run_dir = run_dir.resolve()
        # Chosen once: a gateway that starts again has to be found where it was.
        self._gateway_port = gateway_port or _free_port()
        self._settings = settings or OperatorSettings()
        self._engine_command = tuple(engine_command)
        self._gateway_command = tuple(gateway_command)
        self._model_directory = model_directory
        self._http = BoundedHttp(self._settings)
        self._replicas: dict[str, tuple[str, Child]] = {}
        self._gateway: tuple[str, Child] | None = None
        for part in ("config", "logs", "steps"):
            try:
                (self._run_dir / part).mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise WorldError(f"{self._run_dir} cannot be used as the run directory: {error.strerror}") from None

    def model_directory(self, uri: str) -> Path:
        return self._model_directory(uri)

    async def replicas(self) -> Sequence[ReplicaFacts]:
        for replica_id, (_, child) in list(self._replicas.items()):
            if child.gone.is_set():
                del self._replicas[replica_id]
                self.processors.give_back(replica_id)
        return [
            ReplicaFacts(
                id=replica_id,
                revision=revision,
                phase=child.phase,
                created_at=child.created_at,
                ready_at=child.ready_at,
                restarts=child.restarts,
                url=child.url,
                admin_url=child.admin_url,
                message=child.message,
            )
            for replica_id, (revision, child) in self._replicas.items()
        ]

    async def gateways(self) -> Sequence[GatewayFacts]:
        if self._gateway is None:
            return ()
        revision, child = self._gateway
        if child.gone.is_set():
            self._gateway = None
            return ()
        facts = GatewayFacts(
            id=_GATEWAY,
            revision=revision,
            phase=child.phase,
            restarts=child.restarts,
            url=child.url,
            admin_url=child.admin_url,
            message=child.message,
        )
        return (facts,)

    @property
    def endpoint(self) -> str | None:
        return f"http://127.0.0.1:{self._gateway_port}" if self._gateway is not None else None

    async def prepare(self, deployment: InferenceDeployment, revisions: frozenset[str], wanted: int) -> None:
        """Nothing stands around processes."""

    async def start_replica(self, replica_id: str, revision: str, args: EngineArgs, cpu_millicores: int) -> None:
        if replica_id in self._replicas:
            return
        cpus = self.processors.take(replica_id, cpu_millicores)
        step_log = self._run_dir / "steps" / f"{replica_id}.csv" if args.step_log is not None else None
        args = args.model_copy(
            update={
                "host": "127.0.0.1",
                "port": 0,
                "admin_port": 0,
                "cpus": cpus,
                "num_threads": len(cpus),
                "step_log": step_log,
            }
        )
        launch = self._launch(replica_id, self._engine_command, args.model_dump_json(indent=2))
        self._replicas[replica_id] = (revision, self._child(replica_id, launch))

    async def drain_replica(self, replica_id: str, timeout_s: float) -> None:
        if replica_id in self._replicas:
            self._replicas[replica_id][1].leave(timeout_s)

    async def stop_replica(self, replica_id: str) -> None:
        if replica_id in self._replicas:
            self._replicas[replica_id][1].leave(0)

    async def ensure_gateway(self, revision: str, args: GatewayArgs) -> None:
        if self._gateway is not None and self._gateway[0] == revision:
            return
        args = args.model_copy(update={"host": "127.0.0.1", "port": self._gateway_port, "admin_port": 0})
        launch = self._launch(_GATEWAY, self._gateway_command, args.model_dump_json(indent=2))
        if self._gateway is None:
            self._gateway = (revision, self._child(_GATEWAY, launch))
            return
        child = self._gateway[1]
        if child.phase is not Phase.FAILED:
            if child.admin_url is None:
                # It starts, and may have read the old file already: it is told when it listens.
                return
            await self._configure(child.admin_url, args)
        try:
            child.start_with(launch)
        except OSError as error:
            raise WorldError(f"{launch.config_path} cannot be written: {error.strerror}") from None
        self._gateway = (revision, child)

    async def _configure(self, admin_url: str, args: GatewayArgs) -> None:
        headers = {"Authorization": f"Bearer {self.admin_token}"}
        try:
            answer = await self._http.request(
                "PUT", f"{admin_url}/admin/config", headers=headers, json=args.model_dump(mode="json")
            )
        except AdminError as error:
            raise WorldError(f"the gateway cannot be configured: {error}") from None
        if answer.status != 200:
            said = answer.body[:200].decode(errors="replace")
            raise WorldError(f"the gateway refuses its configuration with {answer.status}: {said}")

    async def announce(self, decision: DecisionStatus) -> None:
        """Who watches this world sees its decisions as they are made."""

    async def write_status(self, status: InferenceDeploymentStatus) -> None:
        path = self._run_dir / "status.json"
        scratch = path.with_suffix(".tmp")
        try:
            scratch.write_text(status.model_dump_json(by_alias=True, exclude_none=True, indent=2) + "\n")
            # Readers see the old status or the new one, never half of one.
            scratch.replace(path)
        except OSError as error:
            raise WorldError(f"{path} cannot be written: {error.strerror}") from None

    async def close(self, timeout_s: float | None = None) -> None:
        """End all children at the same time. With a timeout they first finish what they accepted. Repeatable."""
        children = self._children()
        for child in children:
            child.leave(timeout_s or 0)
        await asyncio.gather(*(child.gone.wait() for child in children))
        await self._http.close()

    def kill(self) -> None:
        """End all children at once and at any cost. `close` still has to be awaited."""
        for child in self._children():
            child.kill()

    def pids(self) -> dict[str, int]:
        """Process ids of the children that run, by name."""
        return {child.name: child.pid for child in self._children() if child.pid is not None}

    def _children(self) -> list[Child]:
        gateway = [self._gateway[1]] if self._gateway is not None else []
        return [*gateway, *(child for _, child in self._replicas.values())]

    def _child(self, name: str, launch: Launch) -> Child:
        return Child(name, launch, self._http, self._settings, self.wake.set)

    def _launch(self, name: str, command: tuple[str, ...], config: str) -> Launch:
        path = self._run_dir / "config" / f"{name}.json"
        return Launch(
            command=(*command, "--config", str(path), "--exit-with-parent"),
            config_path=path,
            config=config,
            log_path=self._run_dir / "logs" / f"{name}.log",
            environment={**os.environ, names.ENV_ADMIN_TOKEN: self.admin_token},
        )


def _processors() -> Iterable[int]:
    """Those that this process may run on, all where the system does not tell."""
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
