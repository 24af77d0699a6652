"""Measures images by pyvips, as the ancestor's script did first: runs in a Python that has pyvips, knows no other file.

    python benchmarks/vips_worker.py FOLDER COUNT

Prints seconds per image by the clock, and of the processor.
"""

import hashlib
import os
import sys
import time

import pyvips


def measure(path: str) -> tuple[int, int, int, int, str]:
    """Width, height, channels, bytes, MD5."""
    image = pyvips.Image.new_from_file(path, access="sequential")
    digest = hashlib.md5()
    with open(path, "rb") as file:
        while piece := file.read(4096):
            digest.update(piece)
    return image.width, image.height, image.bands, os.path.getsize(path), digest.hexdigest()


def main() -> None:
    """Measures COUNT files of FOLDER, one after the other."""
    folder, count = sys.argv[1], int(sys.argv[2])
    paths = [os.path.join(folder, name) for name in sorted(os.listdir(folder))][:count]
    measure(paths[0])
    start, cpu = time.perf_counter(), time.process_time()
    for path in paths:
        measure(path)
    print((time.perf_counter() - start) / len(paths), (time.process_time() - cpu) / len(paths))


if __name__ == "__main__":
    main()
