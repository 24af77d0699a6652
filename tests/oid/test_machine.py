"""Proves that a container's limits of memory and cores are found, in both versions of Linux's control groups."""

import pytest

from oid import machine
from oid.machine import cores_allowed, memory_left

MIB = 2**20


def system(folder, files: dict[str, object]):
    """A folder with proc and sys; 8 GiB are available on the machine."""
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


INNER = {"proc/self/cgroup": "0::/user.slice/job"}
INNER_1 = {"proc/self/cgroup": "9:name=systemd:/x\n5:cpu,cpuacct:/batch/job\n4:memory:/batch/job\n"}


@pytest.mark.parametrize(
    ("files", "left"),
    [
        ({}, None),
        (version_2("max", 300 * MIB), None),
        (version_2(1000 * MIB, 300 * MIB), 700 * MIB),
        (version_2(1000 * MIB, 300 * MIB, 100 * MIB), 800 * MIB),  # page cache can be dropped
        (version_2(1000 * MIB, 1200 * MIB, 100 * MIB), 0),
        (INNER | version_2(1000 * MIB, 300 * MIB, group="/user.slice/job"), 700 * MIB),
        (
            INNER | version_2("max", 0, group="/user.slice/job") | version_2(900 * MIB, 0, group="/user.slice"),
            900 * MIB,
        ),
        (INNER | version_2(1000 * MIB, 300 * MIB), 700 * MIB),  # the container's root is its group
        (INNER | version_2(1000 * MIB, 0, group="/others"), None),
        (version_1(1000 * MIB, 300 * MIB, 50 * MIB), 750 * MIB),
        (INNER_1 | version_1(1000 * MIB, 300 * MIB, 50 * MIB, "/batch/job"), 750 * MIB),
        ({"sys/fs/cgroup/memory.max": "gibberish", "sys/fs/cgroup/memory.current": 1}, None),
        ({"proc/self/cgroup": "no colons"} | version_2(1000 * MIB, 0), 1000 * MIB),
    ],
)
def test_memory_that_is_left(tmp_path, files, left):
    found = system(tmp_path, files)
    assert memory_left(found) == left
    assert machine.free_memory(found) == (8192 * MIB if left is None else left)


def test_a_limit_beyond_what_the_machine_has_changes_nothing(tmp_path):
    assert machine.free_memory(system(tmp_path, version_1(2**63 - 4096, MIB, 0))) == 8192 * MIB


def test_a_system_that_says_nothing_has_4_gib(tmp_path):
    assert machine.free_memory(tmp_path) == 4096 * MIB
    assert machine.free_memory(system(tmp_path, version_2(100 * MIB, 0) | {"proc/meminfo": ""})) == 100 * MIB


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({}, None),
        ({"sys/fs/cgroup/cpu.max": "max 100000"}, None),
        ({"sys/fs/cgroup/cpu.max": "200000 100000"}, 2),
        ({"sys/fs/cgroup/cpu.max": "150000 100000"}, 2),  # rounded up
        ({"sys/fs/cgroup/cpu.max": "1000 100000"}, 1),
        (INNER | {"sys/fs/cgroup/user.slice/cpu.max": "300000 100000"}, 3),
        ({"sys/fs/cgroup/cpu/cpu.cfs_quota_us": -1, "sys/fs/cgroup/cpu/cpu.cfs_period_us": 100000}, None),
        ({"sys/fs/cgroup/cpu/cpu.cfs_quota_us": 50000, "sys/fs/cgroup/cpu/cpu.cfs_period_us": 100000}, 1),
        (
            INNER_1
            | {f"sys/fs/cgroup/cpu/batch/cpu.cfs_{name}_us": n for name, n in (("quota", 7000), ("period", 2000))},
            4,
        ),
    ],
)
def test_cores_that_may_be_used(tmp_path, monkeypatch, files, cores):
    found = system(tmp_path, files)
    assert cores_allowed(found) == cores
    monkeypatch.setattr("os.sched_getaffinity", lambda process: set(range(64)), raising=False)
    assert machine.usable_cores(found) == (cores or 64)
    monkeypatch.setattr("os.sched_getaffinity", lambda process: {0}, raising=False)
    assert machine.usable_cores(found) == 1


def test_the_machine_of_the_tests_has_both():
    assert machine.usable_cores() >= 1
    assert machine.free_memory() > MIB
