"""Names what this machine lacks for an embedded cluster, each with its remedy, before anything is started."""

import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from cluster import images
from cluster.embedded import NODE_PROJECTS, SIMULATED_PROJECTS
from cluster.gobuild import cache_folder, missing
from cluster.node import cni_folder

# Program → Debian package.
NODE_PROGRAMS = {
    "busybox": "busybox-static",
    "ip": "iproute2",
    "iptables": "iptables",
    "mount": "mount",
    "nsenter": "util-linux",
    "runc": "runc",
    "unshare": "util-linux",
}
CAPABILITIES = {"CAP_NET_ADMIN": 12, "CAP_SYS_CHROOT": 18, "CAP_SYS_PTRACE": 19, "CAP_SYS_ADMIN": 21, "CAP_MKNOD": 27}
CGROUP_CONTROLLERS = ("cpu", "memory", "pids")
MEMORY_NEEDED_MIB = 2048
DISK_NEEDED_MIB = 12_000
ELF_INTERPRETER = 3


def for_simulated_nodes() -> list[str]:
    """What a control plane with simulated nodes lacks; empty when it can be started."""
    return list(_common(SIMULATED_PROJECTS))


def for_real_node() -> list[str]:
    """What a cluster with a real node lacks; empty when it can be started."""
    return [*_common(NODE_PROJECTS), *_node()]


def for_images() -> list[str]:
    """What building the images lacks; empty when they can be built."""
    if images.docker_answers():
        return []
    return [
        f"no `{program}` on the PATH, and no Docker that answers: install {program}"
        for program in images.PROGRAMS
        if shutil.which(program) is None
    ]


def _common(projects: tuple[str, ...]) -> Iterator[str]:
    if sys.platform != "linux":
        yield f"this is {sys.platform}: only Linux can run it"
    to_build = missing(projects)
    if to_build and shutil.which("go") is None:
        yield f"no `go` on the PATH, and {', '.join(to_build)} must be built: install Go 1.26"
    cache_folder().mkdir(parents=True, exist_ok=True)
    free_mib = shutil.disk_usage(cache_folder()).free // 2**20
    if to_build and free_mib < DISK_NEEDED_MIB:
        yield f"{cache_folder()} has {free_mib} MiB free and building takes {DISK_NEEDED_MIB}: set CAPSTAN_CACHE"
    if (available := _memory_available_mib()) < MEMORY_NEEDED_MIB:
        yield f"{available} MiB of memory are available and {MEMORY_NEEDED_MIB} are needed"


def _node() -> Iterator[str]:
    for program, package in NODE_PROGRAMS.items():
        if shutil.which(program) is None:
            yield f"no `{program}` on the PATH: install {package}"
    if (busybox := shutil.which("busybox")) and _is_dynamic(Path(busybox)):
        yield f"{busybox} is dynamically linked and cannot be an image by itself: install busybox-static"
    if cni_folder() is None:
        yield "no CNI plugins: install containernetworking-plugins"
    if "overlay" not in Path("/proc/filesystems").read_text().split():
        yield "the kernel offers no overlay file system: load the module overlay"
    if os.geteuid() != 0:
        yield "not root: namespaces and mounts need it (simulated nodes do not)"
    elif lacking := [name for name, bit in CAPABILITIES.items() if not _effective_capabilities() >> bit & 1]:
        yield f"root lacks {', '.join(lacking)}: run outside the container, or make it privileged"
    enabled = _cgroup_controllers()
    if lacking := [controller for controller in CGROUP_CONTROLLERS if controller not in enabled]:
        yield f"no cgroup controller {', '.join(lacking)} under /sys/fs/cgroup"


def _memory_available_mib() -> int:
    fields = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    return int(fields["MemAvailable"].split()[0]) // 1024


def _effective_capabilities() -> int:
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(fields["CapEff"], 16)


def _cgroup_controllers() -> list[str]:
    unified = Path("/sys/fs/cgroup/cgroup.controllers")
    return unified.read_text().split() if unified.exists() else os.listdir("/sys/fs/cgroup")


def _is_dynamic(program: Path) -> bool:
    """Whether a 64-bit little-endian ELF file names an interpreter among its program headers."""
    content = program.read_bytes()
    if content[:6] != b"\x7fELF\x02\x01":
        return False
    offset, size, count = (int.from_bytes(content[a:b], "little") for a, b in ((32, 40), (54, 56), (56, 58)))
    headers = (content[offset + size * index :][:4] for index in range(count))
    return any(int.from_bytes(header, "little") == ELF_INTERPRETER for header in headers)
