"""`capstan up`: the operator and its local world in this process, a screen to watch them, and perhaps a replayed load.

Decides nothing: it hands the resource to the same reconciler that runs in a cluster and shows what comes of it.
"""

import asyncio
import fcntl
import json
import logging
import signal
import socket
import time
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from rich.console import Console

from capstan_api.v1alpha1 import InferenceDeployment
from capstan_cli import bench, output, plot, report, resource, screen
from capstan_cli.errors import ChecksFailed, CliError, InputError
from capstan_cli.frames import Frame, frame
from capstan_cli.load import TraceLoad, declared
from capstan_cli.measure import summarise
from capstan_cli.replay import Replay, Replayed
from capstan_operator.errors import CapstanOperatorError, ModelNotFound
from capstan_operator.reconcile import Reconciler, Turn, record
from capstan_operator.world.processes import ProcessesWorld
from capstan_operator.world.processes.checkpoints import checkpoint_directory

# Of the view's history; a replay is far shorter.
_MAX_FRAMES = 20_000
_REPORT = "report.json"
STOPPED_AT_ONCE = 130
_LOG_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


@dataclass(frozen=True)
class Options:
    """`load` None: serve until told to stop."""

    source: Path
    port: int
    run_dir: Path
    plain: bool
    load: TraceLoad | None
    report: Path | None
    check: bool
    settle_s: float


def run(options: Options) -> int:
    """Serve until stopped; the exit code. Raises `CliError`s."""
    try:
        return asyncio.run(_Session(options).run())
    except CapstanOperatorError as error:
        raise CliError(str(error)) from None


class _Session:
    """One `capstan up`, from the checks before anything starts to the report after everything has stopped."""

    def __init__(self, options: Options) -> None:
        """Raises `InputError` for everything that can be known to be wrong beforehand."""
        self._options = options
        self._console = Console()
        self._source = resource.source(options.source)
        _require_model(self._source())
        self._replay = Replay(options.load, options.settle_s, self._say) if options.load else None
        _require_free(options.port)
        if options.report is not None:
            output.file(options.report / _REPORT)
        self._run_dir = _made(options.run_dir)
        # Kept open: the lock lasts as long as this process, however that ends.
        self._lock = _locked(self._run_dir)
        self._frames: deque[Frame] = deque(maxlen=_MAX_FRAMES)
        self._screen = screen.choose(self._console, plain=options.plain)
        self._stop = asyncio.Event()
        # As of the newest turn.
        self._deployment = self._source()
        self._last_reason = ""
        self._processors: dict[str, tuple[int, ...]] = {}

    async def run(self) -> int:
        began = time.monotonic()
        # The view owns the terminal: what the operator logs goes where the logs of its processes are.
        logging.basicConfig(filename=self._run_dir / "operator.log", level=logging.INFO, format=_LOG_FORMAT)
        world = ProcessesWorld(self._run_dir, gateway_port=self._options.port)
        replayed, code = None, 0
        self._obey_signals()
        try:
            with (self._run_dir / "decisions.jsonl").open("w") as log:
                replayed = await self._serve(world, log)
            await world.close(self._deployment.spec.disruption.drain_timeout_seconds)
        except asyncio.CancelledError:
            code = STOPPED_AT_ONCE
        finally:
            # Whatever did not end by itself until here ends now.
            await world.close()
            self._screen.close()
        if code:
            return code
        if self._replay is None or replayed is None:
            return 0
        return self._conclude(self._replay, replayed, self._cpu_facts(world), time.monotonic() - began)

    async def _serve(self, world: ProcessesWorld, log: TextIO) -> Replayed | None:
        """Reconcile until told to stop or until the replay is through; None without a finished replay."""

        def turned(turn: Turn) -> None:
            self._processors.update(world.processors.taken)
            self._turned(turn, log)

        turning = asyncio.create_task(Reconciler(world, self._source).run(self._stop, turned))
        replaying = asyncio.create_task(self._replay.run()) if self._replay else None
        tasks: list[asyncio.Task[Any]] = [turning, *([replaying] if replaying else [])]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            self._stop.set()
            if replaying is None or not replaying.done():
                return None
            return replaying.result()
        finally:
            self._stop.set()
            if replaying is not None:
                replaying.cancel()
            await turning

    def _turned(self, turn: Turn, log: TextIO) -> None:
        self._deployment = turn.deployment
        seen = frame(turn.deployment, turn.now, turn.observation, turn.decision, turn.error)
        self._frames.append(seen)
        if self._replay is not None:
            self._replay.see(seen)
        self._screen.show(self._frames)
        if self._is_worth_recording(turn):
            log.write(json.dumps(record(turn)) + "\n")
            log.flush()

    def _is_worth_recording(self, turn: Turn) -> bool:
        """Every change and every failure, and a hold when its reason is a new one."""
        reason = turn.error or (turn.decision.said.reason if turn.decision else "")
        is_new, self._last_reason = reason != self._last_reason, reason
        return is_new or bool(turn.decision and turn.decision.changes)

    def _cpu_facts(self, world: ProcessesWorld) -> dict[str, Any]:
        """How the replicas of this run shared the processors."""
        return {
            "available": list(world.processors.numbers),
            "millicores_per_replica": self._deployment.spec.variant.resources.cpu_millicores,
            "replicas": {replica: list(numbers) for replica, numbers in sorted(self._processors.items())},
            "note": "The step loop of a replica computes on its own processors, the least taken ones when it started. "
            "Gateway, operator and load generator run on any of them.",
        }

    def _conclude(self, replay: Replay, replayed: Replayed, cpu_facts: dict[str, Any], wall_seconds: float) -> int:
        """Sum up the replay, write what was asked for, and check the claims."""
        thresholds = declared(self._deployment.spec)
        summary = summarise(replayed.outcomes, thresholds)
        run = report.Run(
            deployment=self._deployment,
            frames=list(self._frames),
            outcomes=replayed.outcomes,
            summary=summary,
            load_facts=replay.facts(),
            cpu_facts=cpu_facts,
            load_started_at=replayed.started_at,
            wall_seconds=wall_seconds,
        )
        self._console.print(bench.table(summary))
        for line in (*bench.lines(summary), *report.lines(run)):
            self._console.print(line, highlight=False, markup=False, soft_wrap=True)
        if self._options.report is not None:
            output.write_json(self._options.report / _REPORT, report.document(run))
            plot.draw(self._options.report / "report.png", replayed.outcomes, thresholds, run)
            self._console.print(
                f"Written: {self._options.report}/{_REPORT} and report.png", highlight=False, soft_wrap=True
            )
        failed = [name.replace("_", " ") for name, holds in report.checks(run).items() if not holds]
        if failed and self._options.check:
            raise ChecksFailed(f"this run did not show: {', '.join(failed)}")
        return 0

    def _say(self, sentence: str) -> None:
        self._screen.say(sentence)

    def _obey_signals(self) -> None:
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        assert task is not None

        def interrupted() -> None:
            if self._stop.is_set():
                if not task.cancelling():
                    task.cancel()
                return
            self._say("Stopping: what was accepted is finished first. Once more stops at once.")
            self._stop.set()

        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, interrupted)


def _require_model(deployment: InferenceDeployment) -> None:
    """Raises `InputError` when this machine does not have the checkpoint."""
    try:
        checkpoint_directory(deployment.spec.model.source.uri)
    except ModelNotFound as error:
        raise InputError(str(error)) from None


def _require_free(port: int) -> None:
    """Raises `InputError` when something listens on the port already; port 0 is always free."""
    with socket.socket() as probe:
        # As servers do it, so that connections that linger from a run before are no obstacle.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise InputError(f"port {port} cannot be used ({error.strerror}); choose another with --port") from None


def _locked(directory: Path) -> TextIO:
    """A lock on the run directory: two runs in one would overwrite each other's configuration and status."""
    try:
        lock = (directory / "lock").open("w")
    except OSError as error:
        why = f"cannot write to the run directory {directory}: {error.strerror}"
        raise InputError(f"{why}; choose another with --run-dir") from None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        lock.close()
        raise InputError(f"another capstan up uses {directory}; choose another directory with --run-dir") from None
    return lock


def _made(directory: Path) -> Path:
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot make the run directory {directory}: {error.strerror}") from None
    return directory
