"""What this machine, or the container on it, has of memory and processors, and how to give memory back to it."""

import ctypes
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

_ROOT: Final = Path("/")
# Version 2 and version 1 of control groups; within a container the first levels are the container's own.
_LIMITS: Final = ("sys/fs/cgroup/{}memory.max", "sys/fs/cgroup/memory/{}memory.limit_in_bytes")
_QUOTA: Final = "sys/fs/cgroup/{}cpu.max"
_OLD_QUOTAS: Final = ("sys/fs/cgroup/cpu/{}cpu.cfs_quota_us", "sys/fs/cgroup/cpu/{}cpu.cfs_period_us")
_M_ARENA_MAX: Final = -8


def available_memory(root: Path = _ROOT) -> int:
    """Bytes that this process and its relatives may use: the container's limit or what the machine has free.

    `root` holds /proc and /sys.
    """
    return min((_free(root), *_limits(root)))


def num_threads(most: int | None, root: Path = _ROOT) -> int:
    """Threads for the engine core: one for each processor that it may keep busy, and `most` at most.

    A thread more than a CPU quota covers does not compute more: the group is stopped for the rest of each period, and
    the threads of a step all wait for the one that was.
    """
    # Not everywhere can a process be tied to processors.
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    there = max(1, min((allowed, *map(int, _quotas(root)))))
    return there if most is None else min(most, there)


def allocate_in_one_place() -> None:
    """Have threads that begin from now on share one heap, where the C library can be told (mallopt(3)).

    Of a heap of their own the end is never given back, and that is where they have freed most.
    """
    if (library := _c_library("mallopt")) is not None:
        library.mallopt(_M_ARENA_MAX, 1)


def give_back_freed_memory() -> None:
    """Return what this process has freed to the system, where the C library has a call for it (malloc_trim(3)).

    Loading frees large pieces between small ones that stay; the allocator would keep all of them for later.
    """
    if (library := _c_library("malloc_trim")) is not None:
        library.malloc_trim(0)


def _c_library(function: str) -> ctypes.CDLL | None:
    """If it has this one."""
    if sys.platform == "linux" and hasattr(library := ctypes.CDLL(None), function):
        return library
    return None


def _free(root: Path) -> int:
    meminfo = root / "proc/meminfo"
    for line in meminfo.read_text().splitlines() if meminfo.exists() else ():
        name, _, value = line.partition(":")
        if name == "MemAvailable":
            return int(value.split()[0]) << 10
    # Not Linux: all there is, since what is free cannot be asked for.
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _limits(root: Path) -> Iterator[int]:
    """In bytes, as far as there are any."""
    for pattern in _LIMITS:
        for path in _of_groups(root, pattern):
            # `max` is no limit.
            if (limit := path.read_text().strip()).isdecimal():
                yield int(limit)


def _quotas(root: Path) -> Iterator[float]:
    """In processors, as far as there are any."""
    for path in _of_groups(root, _QUOTA):
        quota, _, period = path.read_text().strip().partition(" ")
        # `max` is no quota.
        if quota.isdecimal():
            yield int(quota) / int(period)
    quotas, periods = (_of_groups(root, pattern) for pattern in _OLD_QUOTAS)
    for old_quota, old_period in zip(quotas, periods, strict=True):
        # -1 is no quota.
        if (micros := int(old_quota.read_text())) > 0:
            yield micros / int(old_period.read_text())


def _of_groups(root: Path, pattern: str) -> Iterator[Path]:
    """The files there are, of the control group that is mounted and of the one that this process is in."""
    groups = root / "proc/self/cgroup"
    lines = groups.read_text().splitlines() if groups.exists() else []
    own = {line.rpartition(":")[2].strip("/") for line in lines}
    for group in ("", *sorted(own - {""})):
        path = root / pattern.format(f"{group}/" if group else "")
        if path.exists():
            yield path
