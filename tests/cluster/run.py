"""One run of a cluster on this machine: its folder, its processes, its namespaces, and the one way to end it.

A run with a node of its own lives inside one process: the init of new PID, mount and network namespaces, which every
daemon then joins. When that process is killed the kernel ends every daemon, shim and container with it and drops
their mounts, links and packet-filter rules, however badly the run went. Only cgroups and files are left to remove.
Without namespaces (no root), the run's processes are found by a marker that each carries in its environment.

It knows nothing of Kubernetes. What must be found again after a SIGKILL is written down before it is made.
"""

import json
import os
import secrets
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

from cluster.gobuild import cache_folder

MARKER = "CAPSTAN_TEST_CLUSTER"
CGROUPS = Path("/sys/fs/cgroup")
# The node writes to these whatever it is told; in its own mount namespace they are empty and its alone.
PRIVATE_FOLDERS = ("/run", "/var/lib", "/var/log")
GONE_WITHIN_S = 20.0
POLL_S = 0.05


class StartFailed(Exception):
    """A part of the cluster did not come up; the text names it and ends with the last lines of its log."""


@dataclass
class Daemon:
    """One process of the run, with its log; may be killed and started again by tests that break things.

    `behind`: the command has to fork to enter a PID namespace, so the daemon is the only child of what is started.
    """

    name: str
    command: Sequence[str]
    log: Path
    environment: Mapping[str, str]
    behind: bool = False
    process: "subprocess.Popen[bytes] | None" = None

    def start(self) -> None:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self.command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self.environment,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        """The daemon's own process, as this machine numbers it; 0 before it was forked."""
        assert self.process is not None
        if not self.behind:
            return self.process.pid
        return next((pid for pid in _pids() if _parent(pid) == self.process.pid), 0)

    def kill(self) -> None:
        """End it at once and wait until it is gone."""
        assert self.process is not None
        if pid := self.pid:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._wake()
        self.process.wait(GONE_WITHIN_S)

    def signal(self, number: signal.Signals) -> None:
        """Send a signal, as SIGSTOP to make it hang and SIGCONT to let it go on."""
        os.kill(self.pid, number)
        if number is signal.SIGCONT:
            self._wake()

    def _wake(self) -> None:
        """What is started in front of the daemon stops itself when the daemon is stopped, and reaps it only awake."""
        assert self.process is not None
        if self.behind:
            self.process.send_signal(signal.SIGCONT)

    def wait_until(self, ready: Callable[[], bool], timeout_s: float) -> None:
        """Poll `ready`; raises StartFailed when the process ends first or the time is over."""
        assert self.process is not None
        deadline_s = time.monotonic() + timeout_s
        while not ready():
            if (status := self.process.poll()) is not None:
                raise StartFailed(f"{self.name} ended with status {status}; {self.log} ends:\n{self.last_words()}")
            if time.monotonic() > deadline_s:
                raise StartFailed(
                    f"{self.name} was not ready in {timeout_s:g} s; {self.log} ends:\n{self.last_words()}"
                )
            time.sleep(POLL_S)

    def last_words(self, num_lines: int = 15) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-num_lines:])


@dataclass
class Record:
    """What is needed to end a run without the process that started it; kept as JSON beside the build cache.

    `owner` is (pid, start time) of the process that the run must not outlive, None for one started from the shell.
    """

    id: str
    folder: str
    kind: str
    owner: tuple[int, str] | None = None
    kubeconfig: str = ""

    @property
    def path(self) -> Path:
        return _records() / f"{self.id}.json"

    def save(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_text(json.dumps(asdict(self)))

    @property
    def orphaned(self) -> bool:
        return self.owner is not None and _started(self.owner[0]) != self.owner[1]


@dataclass
class Run:
    """A run that this process started, or found (`attach`)."""

    record: Record
    daemons: dict[str, Daemon] = field(default_factory=dict)
    _init: Daemon | None = None

    @classmethod
    def create(cls, kind: str, owned: bool) -> "Run":
        """A fresh folder and record. `owned`: `clean` may remove the run once this process is dead."""
        id_ = secrets.token_hex(3)
        folder = tempfile.mkdtemp(prefix=f"capstan-{id_}-")
        owner = (os.getpid(), _started(os.getpid())) if owned else None
        record = Record(id_, folder, kind, owner)
        record.save()
        return cls(record)

    @property
    def id(self) -> str:
        return self.record.id

    @property
    def folder(self) -> Path:
        return Path(self.record.folder)

    @property
    def cgroup(self) -> str:
        return f"capstan-{self.id}"

    @property
    def init_pid(self) -> int:
        """The init that holds the run's namespaces, as this machine numbers it."""
        assert self._init is not None
        return self._init.pid

    def isolate(self) -> None:
        """Make the run's PID, mount and network namespaces and its cgroup. Needs root."""
        for hierarchy in _hierarchies():
            group = hierarchy / self.cgroup
            group.mkdir()
            # A fresh cpuset admits no process until it is told which CPUs and memory nodes it has (cgroup v1).
            for setting in ("cpuset.cpus", "cpuset.mems"):
                if (group / setting).exists() and (group / "cgroup.clone_children").exists():
                    (group / setting).write_text((hierarchy / setting).read_text())
        mounts = "".join(f"mount -t tmpfs capstan {folder} && " for folder in PRIVATE_FOLDERS)
        # `wait` reaps whatever is orphaned in the namespace, as an init must.
        script = (
            f"mount --make-rshared / && {mounts}touch {self.folder}/isolated && while :; do sleep 86400 & wait; done"
        )
        unshare = ("unshare", "--mount", "--net", "--pid", "--fork", "--mount-proc", "--propagation", "private")
        self._init = Daemon(
            "init", (*unshare, "sh", "-c", script), self.folder / "init.log", self._environment, behind=True
        )
        self._init.start()
        self._init.wait_until((self.folder / "isolated").exists, 10)

    def inside(self, *command: str) -> None:
        """Run a short command in the network namespace; raises StartFailed with what it said."""
        subprocess_or_fail(("nsenter", "--target", str(self.init_pid), "--net", *command))

    def start(self, name: str, *command: str) -> Daemon:
        """Start a daemon, inside the run's namespaces when it has any."""
        enter = ("nsenter", "--target", str(self.init_pid), "--mount", "--net", "--pid") if self._init else ()
        log = self.folder / f"{name}.log"
        daemon = Daemon(name, (*enter, *command), log, self._environment, behind=self._init is not None)
        self.daemons[name] = daemon
        daemon.start()
        return daemon

    def end(self) -> None:
        """Leave nothing behind. Idempotent; raises RuntimeError that names what would not go."""
        _end_processes(self.folder)
        for daemon in (*self.daemons.values(), *([self._init] if self._init else ())):
            if daemon.process is not None:
                daemon.process.wait()
        deadline_s = time.monotonic() + GONE_WITHIN_S
        while left := [group for group in cgroups_of(self.record) if not _remove_cgroup(group)]:
            if time.monotonic() > deadline_s:
                raise RuntimeError(f"cluster {self.id}: these cgroups would not go: {', '.join(map(str, left))}")
            time.sleep(POLL_S)
        link = link_name(self.record)
        while Path("/sys/class/net", link).exists():
            # The kernel takes a dead namespace's links down in its own time.
            subprocess.run(("ip", "link", "delete", link), capture_output=True, check=False)
            time.sleep(POLL_S)
        shutil.rmtree(self.folder, ignore_errors=True)
        if self.folder.exists():
            raise RuntimeError(f"cluster {self.id}: {self.folder} could not be removed")
        self.record.path.unlink(missing_ok=True)

    @property
    def _environment(self) -> dict[str, str]:
        return os.environ | {MARKER: str(self.folder)}


def records() -> list[Record]:
    """Every run that has not ended, oldest first."""
    paths = sorted(_records().glob("*.json"), key=lambda path: path.stat().st_mtime)
    return [_load(path) for path in paths]


def link_name(record: Record) -> str:
    """The host's end of the link into the run's network namespace."""
    return f"cap{record.id}"


def cgroups_of(record: Record) -> list[Path]:
    return [group for hierarchy in _hierarchies() if (group := hierarchy / f"capstan-{record.id}").is_dir()]


def processes_of(folder: Path) -> list[int]:
    """The PIDs whose environment carries this run's marker."""
    wanted = f"{MARKER}={folder}".encode()
    return [pid for pid in _pids() if wanted in _environ(pid).split(b"\0")]


def subprocess_or_fail(command: Sequence[str]) -> str:
    """Run a command that is expected to work; its output, or StartFailed with what it said."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise StartFailed(f"{' '.join(command)} ended with status {done.returncode}: {done.stderr or done.stdout}")
    return done.stdout


def _end_processes(folder: Path) -> None:
    deadline_s = time.monotonic() + GONE_WITHIN_S
    while pids := [pid for pid in processes_of(folder) if pid != os.getpid()]:
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            # Ours must be reaped, or its marker stays readable in nobody's table but its entry stays in /proc.
            with suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)
        if time.monotonic() > deadline_s:
            raise RuntimeError(f"these processes of {folder} would not end: {pids}")
        time.sleep(POLL_S)


def _remove_cgroup(group: Path) -> bool:
    """Remove a cgroup tree, deepest first; False while something still runs in it."""
    for folder, _, _ in os.walk(group, topdown=False):
        with suppress(OSError):
            os.rmdir(folder)
    return not group.exists()


def _hierarchies() -> list[Path]:
    """Where cgroups are made: the one tree of v2, or every controller's of v1 (symbolic links are aliases)."""
    if (CGROUPS / "cgroup.controllers").exists():
        return [CGROUPS]
    return [path for path in CGROUPS.iterdir() if path.is_dir() and not path.is_symlink()]


def _load(path: Path) -> Record:
    content = json.loads(path.read_text())
    # JSON has no tuples.
    return Record(**content | {"owner": content["owner"] and (content["owner"][0], content["owner"][1])})


def _records() -> Path:
    return cache_folder() / "clusters"


def _pids() -> Iterator[int]:
    return (int(name) for name in os.listdir("/proc") if name.isdigit())


def _environ(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return b""  # it has ended, or is somebody else's


def _stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat after the program's name, which may itself hold blanks and brackets."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


def _parent(pid: int) -> int:
    stat = _stat(pid)
    return int(stat[1]) if stat else 0


def _started(pid: int) -> str:
    """When a process began, in clock ticks since boot: with the PID it names a process for good."""
    stat = _stat(pid)
    return stat[19] if stat else ""
