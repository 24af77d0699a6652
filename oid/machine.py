"""The cores and the memory that this process may use, with the limits of containers and batch systems; threads.

Linux's control groups set these limits, in version 1 and in version 2. They are files below /sys/fs/cgroup: in the
folder of the process's group, which /proc/self/cgroup names, and in the folders above it, whose limits count as well.
A container often sees its own group as the root, but the host's name of the group.
"""

import collections
import math
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

TASKS_PER_THREAD = 2  # that wait or are done
UNKNOWN_MEMORY = 4 * 2**30  # bytes that count as free where the system does not say
MEMORY_FILES = (("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes"))  # version 2, 1
PAGE_CACHE = ("total_inactive_file", "inactive_file")  # in version 1 the second one leaves out the groups below


def usable_cores(system: str | Path = "/") -> int:
    """Returns the number of cores that this process may use; a part of a core counts as one.

    Args:
        system: folder with proc and sys.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    for group in _groups(Path(system), "cpu"):
        version_2 = _numbers(group / "cpu.max")  # "150000 100000": microseconds of each period; "max": no limit
        version_1 = _numbers(group / "cpu.cfs_quota_us") + _numbers(group / "cpu.cfs_period_us")  # -1: no limit
        for share in (version_2, version_1):
            if len(share) == 2 and min(share) > 0:
                cores = min(cores, math.ceil(share[0] / share[1]))
    return cores


def map_in_threads(function: Callable, items: Iterable, threads: int = 2, *, ahead: int = 0) -> Iterator:
    """As `map`, in threads; takes few items before their results are needed, so that memory stays small.

    Args:
        ahead: number of those items; 0 = `TASKS_PER_THREAD` for each thread.
    """
    pool, waiting = ThreadPoolExecutor(threads), collections.deque()
    try:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) == (ahead or TASKS_PER_THREAD * threads):
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)  # an interruption does not wait for the rest


def free_memory(system: str | Path = "/") -> int:
    """Returns the bytes that this process can allocate without swapping and without being killed by its container.

    Args:
        system: folder with proc and sys.
    """
    kibibytes = _table(Path(system) / "proc" / "meminfo").get("MemAvailable")
    free = UNKNOWN_MEMORY if kibibytes is None else kibibytes * 1024
    for group in _groups(Path(system), "memory"):
        table = _table(group / "memory.stat")
        cache = next(
            (table[name] for name in PAGE_CACHE if name in table), 0
        )  # the system drops it when memory is short
        for limit_file, usage_file in MEMORY_FILES:
            limit, used = _numbers(group / limit_file), _numbers(group / usage_file)
            if limit and used:
                free = min(free, max(0, limit[0] - max(0, used[0] - cache)))
    return free


def _groups(system: Path, controller: str) -> Iterator[Path]:
    """Yields the folders that may hold limits of this process; some of them do not exist."""
    top = system / "sys" / "fs" / "cgroup"
    paths = {top: "/", top / controller: "/"}
    for line in _lines(system / "proc" / "self" / "cgroup"):  # "0::/user.slice/job" or "4:cpu,cpuacct:/batch/job"
        _, controllers, path = (line + "::").split(":")[:3]
        if not controllers:
            paths[top] = path
        elif controller in controllers.split(","):
            paths[top / controller] = path
    for root, path in paths.items():
        group = root / path.strip("/")
        yield group
        yield from (folder for folder in group.parents if folder.is_relative_to(root))


def _lines(file: Path) -> list[str]:
    """Returns the lines of a file; none if it cannot be read."""
    try:
        return file.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError):
        return []


def _numbers(file: Path) -> list[int]:
    """Returns the whole numbers of a file; none if it cannot be read or has other words, such as "max"."""
    words = " ".join(_lines(file)).split()
    return [int(word) for word in words] if all(word.lstrip("-").isdecimal() for word in words) else []


def _table(file: Path) -> dict[str, int]:
    """Returns the numbers of a file with lines such as "MemAvailable: 1024 kB"."""
    rows = [line.split() for line in _lines(file)]
    return {row[0].rstrip(":"): int(row[1]) for row in rows if len(row) > 1 and row[1].isdecimal()}
