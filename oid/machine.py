"""How many cores and how much memory this process may use, limits of containers and batch systems included.

Linux's control groups, of both versions, set these limits.

The limits are files below /sys/fs/cgroup, in the folder that /proc/self/cgroup names and in those above it, which limit
it as well. A container often sees its own group as the root, and the host's name of it.
"""

import math
import os
from collections.abc import Iterator
from pathlib import Path

MEMORY = (("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes"))  # version 2, 1
DROPPABLE = ("total_inactive_file", "inactive_file")  # page cache; version 1's second leaves out groups below


def usable_cores(system: str | Path = "/") -> int:
    """The cores that this process may run on, of all that the machine has; with part of one's time it counts whole.

    Args:
        system: folder with proc and sys.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, cores_allowed(system) or cores)


def free_memory(system: str | Path = "/") -> int:
    """Bytes that a program can take without hurting others, and without being ended by its container.

    Args:
        system: folder with proc and sys; 4 GiB are free where they do not say.
    """
    try:
        with open(Path(system) / "proc" / "meminfo", encoding="ascii") as file:
            lines = dict(line.split(":") for line in file)
        free = int(lines["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        free = 4 * 2**30
    left = memory_left(system)
    return free if left is None else min(free, left)


def memory_left(system: str | Path = "/") -> int | None:
    """Bytes that may still be taken, page cache that can be dropped included; None where there is no limit.

    Args:
        system: folder with proc and sys.
    """
    rooms = []
    for group in _groups(Path(system), "memory"):
        for limit_file, usage_file in MEMORY:
            limit, used = _numbers(group / limit_file), _numbers(group / usage_file)
            if limit and used:
                rooms.append(max(0, limit[0] - max(0, used[0] - _droppable(group / "memory.stat"))))
    return min(rooms, default=None)


def cores_allowed(system: str | Path = "/") -> int | None:
    """Cores whose time may be taken, rounded up; None where there is no limit.

    Args:
        system: folder with proc and sys.
    """
    quotas = []
    for group in _groups(Path(system), "cpu"):
        shares = [_numbers(group / "cpu.max")]  # "150000 100000": microseconds, of so many
        shares.append(_numbers(group / "cpu.cfs_quota_us") + _numbers(group / "cpu.cfs_period_us"))  # -1: no limit
        quotas += [math.ceil(share[0] / share[1]) for share in shares if len(share) == 2 and min(share) > 0]
    return min(quotas, default=None)


def _groups(system: Path, controller: str) -> Iterator[Path]:
    """Folders with limits of this process, those that do not exist among them."""
    top = system / "sys" / "fs" / "cgroup"
    paths = {top: "/", top / controller: "/"}
    try:
        lines = (system / "proc" / "self" / "cgroup").read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError):
        lines = []
    for line in lines:
        _, controllers, path = (line + "::").split(":")[:3]
        if not controllers:
            paths[top] = path
        elif controller in controllers.split(","):
            paths[top / controller] = path
    for root, path in paths.items():
        parts = [part for part in path.split("/") if part]
        for count in range(len(parts) + 1):
            yield root.joinpath(*parts[:count])


def _numbers(file: Path) -> list[int]:
    """The whole numbers of a file; none where it is missing or says "max"."""
    try:
        return [int(word) for word in file.read_text(encoding="ascii").split()]
    except (OSError, ValueError):
        return []


def _droppable(file: Path) -> int:
    """Bytes of page cache that the system would drop for a program that needs them."""
    try:
        lines = dict(line.split() for line in file.read_text(encoding="ascii").splitlines())
        return next((int(lines[name]) for name in DROPPABLE if name in lines), 0)
    except (OSError, ValueError):
        return 0
