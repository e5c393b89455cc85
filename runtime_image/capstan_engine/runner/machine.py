"""What this machine, or the container on it, has of memory."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

_ROOT: Final = Path("/")
# Version 2 and version 1 of control groups; within a container the first levels are the container's own.
_LIMITS: Final = ("sys/fs/cgroup/{}memory.max", "sys/fs/cgroup/memory/{}memory.limit_in_bytes")


def available_memory(root: Path = _ROOT) -> int:
    """Bytes that this process and its relatives may use: the container's limit or what the machine has free.

    `root` holds /proc and /sys.
    """
    return min((_free(root), *_limits(root)))


def _free(root: Path) -> int:
    meminfo = root / "proc/meminfo"
    for line in meminfo.read_text().splitlines() if meminfo.exists() else ():
        name, _, value = line.partition(":")
        if name == "MemAvailable":
            return int(value.split()[0]) << 10
    # Not Linux: all there is, since what is free cannot be asked for.
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _limits(root: Path) -> Iterator[int]:
    """Those of the control group that is mounted and of the one that this process is in, as far as there are any."""
    groups = root / "proc/self/cgroup"
    lines = groups.read_text().splitlines() if groups.exists() else []
    own = {line.rpartition(":")[2].strip("/") for line in lines}
    for pattern in _LIMITS:
        for group in ("", *sorted(own)):
            path = root / pattern.format(f"{group}/" if group else "")
            # A missing file is no limit, and `max` is none either.
            if path.exists() and (limit := path.read_text().strip()).isdecimal():
                yield int(limit)
