"""Proves that a container's limits of memory and cores are found, in both versions of Linux's control groups."""

import os

import pytest

from oid.machine import free_memory, usable_cores
from tests.helpers.project import ROOT

MIB = 2**20
ROOMS = ("oid", "models", "training", "demo")
INNER_2 = {"proc/self/cgroup": "0::/user.slice/job"}
INNER_1 = {"proc/self/cgroup": "9:name=systemd:/x\n5:cpu,cpuacct:/batch/job\n4:memory:/batch/job\n"}


def system(folder, files: dict[str, object]):
    """Makes a folder with proc and sys; 8 GiB are available on the machine."""
    files = {"proc/meminfo": f"MemTotal: {16 * 2**20} kB\nMemAvailable: {8 * 2**20} kB"} | files
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text}\n")
    return folder


def version_2(limit: object, used: int, cache: int = 0, group: str = "") -> dict[str, object]:
    folder = f"sys/fs/cgroup{group}/memory"
    return {f"{folder}.max": limit, f"{folder}.current": used, f"{folder}.stat": f"anon 5\ninactive_file {cache}"}


def version_1(limit: int, used: int, cache: int, group: str = "") -> dict[str, object]:
    folder = f"sys/fs/cgroup/memory{group}/memory"
    stat = f"inactive_file 1\ntotal_inactive_file {cache}"
    return {f"{folder}.limit_in_bytes": limit, f"{folder}.usage_in_bytes": used, f"{folder}.stat": stat}


@pytest.mark.parametrize(
    ("files", "mib"),
    [
        ({}, 8192),
        (version_2("max", 300 * MIB), 8192),
        (version_2(1000 * MIB, 300 * MIB, 100 * MIB), 800),  # page cache can be dropped
        (version_2(1000 * MIB, 1200 * MIB, 100 * MIB), 0),
        (INNER_2 | version_2(1000 * MIB, 300 * MIB, group="/user.slice/job"), 700),
        (INNER_2 | version_2("max", 0, group="/user.slice/job") | version_2(900 * MIB, 0, group="/user.slice"), 900),
        (INNER_2 | version_2(1000 * MIB, 300 * MIB), 700),  # the container's root is its group
        (INNER_2 | version_2(1000 * MIB, 0, group="/others"), 8192),
        (version_1(1000 * MIB, 300 * MIB, 50 * MIB), 750),
        (version_1(2**63 - 4096, MIB, 0), 8192),  # more than the machine has
        (INNER_1 | version_1(1000 * MIB, 300 * MIB, 50 * MIB, "/batch/job"), 750),
        ({"sys/fs/cgroup/memory.max": "gibberish", "sys/fs/cgroup/memory.current": 1}, 8192),
        ({"proc/self/cgroup": "no colons"} | version_2(1000 * MIB, 0), 1000),
        ({"proc/meminfo": ""}, 4096),
        ({"proc/meminfo": ""} | version_2(100 * MIB, 0), 100),
    ],
)
def test_free_memory_respects_the_limits_of_a_container(tmp_path, files, mib):
    assert free_memory(system(tmp_path, files)) == mib * MIB


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({}, 64),
        ({"sys/fs/cgroup/cpu.max": "max 100000"}, 64),
        ({"sys/fs/cgroup/cpu.max": "150000 100000"}, 2),  # rounded up
        ({"sys/fs/cgroup/cpu.max": "1000 100000"}, 1),
        (INNER_2 | {"sys/fs/cgroup/user.slice/cpu.max": "300000 100000"}, 3),
        ({"sys/fs/cgroup/cpu/cpu.cfs_quota_us": -1, "sys/fs/cgroup/cpu/cpu.cfs_period_us": 100000}, 64),
        ({"sys/fs/cgroup/cpu/cpu.cfs_quota_us": 50000, "sys/fs/cgroup/cpu/cpu.cfs_period_us": 100000}, 1),
        (INNER_1 | {f"sys/fs/cgroup/cpu/batch/cpu.cfs_{n}_us": us for n, us in (("quota", 7), ("period", 2))}, 4),
    ],
)
def test_usable_cores_respect_the_limits_of_a_container(tmp_path, monkeypatch, files, cores):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(64)), raising=False)
    assert usable_cores(system(tmp_path, files)) == cores
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0}, raising=False)
    assert usable_cores(tmp_path) == 1


def test_only_this_module_counts_cores():
    files = [*ROOT.glob("*.py"), *(path for room in ROOMS for path in (ROOT / room).rglob("*.py"))]
    assert [path.name for path in files if "cpu_count" in path.read_text(encoding="utf-8")] == ["machine.py"]
