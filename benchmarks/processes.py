"""What a process costs: shared by the benchmarks of whole scripts."""

import os
import subprocess
import sys
import time


def measured(command: list[str], environment: dict[str, str] | None = None) -> tuple[float, float, float]:
    """Seconds, seconds of processor time, and highest memory, MB, of a process that must end well."""
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, env=environment)
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with code {process.returncode}")
    megabytes = usage.ru_maxrss / (1e6 if sys.platform == "darwin" else 1e3)
    return seconds, usage.ru_utime + usage.ru_stime, megabytes
