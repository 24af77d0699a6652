"""The table of images: a second run measures only what has changed, and an interruption loses nothing."""

import csv
import os
from pathlib import Path

import pytest
from PIL import Image

from oid import machine
from oid.images import table
from oid.images.find import list_images

NAMES = ("abc/abc123.JPG", "cmyk.jpg", "exif.jpg", "gray.jpg", "long.jpeg", "rgba.png")
MODES = {"cmyk": "CMYK", "gray": "L", "rgba": "RGBA"}


def save(path, size=(40, 30)):
    exif = Image.Exif()
    exif[0x0112] = 6 if path.stem == "exif" else 1
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.effect_noise(size, 50).convert(MODES.get(path.stem, "RGB")).save(path, exif=exif)
    os.utime(path, (1_600_000_000, 1_600_000_000))  # old, as downloaded images are


class Folder:
    """A folder of images, and its tables."""

    def __init__(self, place: Path):
        self.images, self.output = place / "images", place / "out"
        self.table, self.problems = self.output / "params.csv", self.output / "problems.csv"
        for name in NAMES:
            save(self.images / name)
        (self.images / "empty.jpg").write_bytes(b"")
        (self.images / "cut.jpg").write_bytes((self.images / "long.jpeg").read_bytes()[:-100])

    def measure(self, *, orientation="stored", md5=True, threads=2) -> table.Counts:
        """Runs `measure_images`; nothing unfinished must be left."""
        done, images = [], list_images(self.images)
        options = {"orientation": orientation, "md5": md5, "threads": threads, "progress": done.append}
        counts = table.measure_images(images, self.table, self.problems, **options)
        assert sum(done) == len(images.names)
        assert not list(self.output.glob("*unfinished*"))
        return counts

    def rows(self, path=None):
        with (path or self.table).open(newline="") as file:
            return {next(iter(row.values())): row for row in csv.DictReader(file)}

    def interrupt(self, monkeypatch, name):
        """Measures in one thread, a file at a time, until Ctrl-C is pressed at one of them."""
        real = table.image_parameters

        def interrupted(path, *args, **options):
            if Path(path).stem == name:
                raise KeyboardInterrupt
            return real(path, *args, **options)

        with monkeypatch.context() as patch:
            patch.setattr(machine, "TASKS_PER_THREAD", 1)
            patch.setattr(table, "BLOCK", 1)
            patch.setattr(table, "image_parameters", interrupted)
            with pytest.raises(KeyboardInterrupt):
                self.measure(threads=1)
        assert not self.table.exists()
        assert not list(self.output.glob("*problems*"))


@pytest.fixture
def folder(tmp_path):
    return Folder(tmp_path)


def test_a_second_run_keeps_the_rows_of_unchanged_files(folder):
    assert folder.measure() == (6, 0, 2)
    first = folder.table.read_bytes()
    assert folder.measure() == (0, 6, 2)
    assert folder.table.read_bytes() == first
    save(folder.images / "gray.jpg", size=(50, 20))  # another size
    (folder.images / "rgba.png").write_bytes((folder.images / "rgba.png").read_bytes())  # newer
    (folder.images / "cmyk.jpg").unlink()
    (folder.images / "cut.jpg").unlink()
    assert folder.measure() == (2, 3, 1)
    rows = folder.rows()
    assert rows["gray"]["width"] == "50"
    assert "cmyk" not in rows
    assert len(folder.rows(folder.problems)) == 1
    (folder.images / "empty.jpg").unlink()
    folder.measure()
    assert not folder.problems.exists()


def test_exif_swaps_sides_and_the_table_is_not_reused_for_the_other_orientation(folder):
    folder.measure()
    assert folder.measure(orientation="exif") == (6, 0, 2)
    rows = folder.rows()
    assert [rows[name]["width"] for name in ("exif", "long")] == ["30", "40"]


@pytest.mark.parametrize("second", ["exif", "gray"])
def test_two_interruptions_lose_no_row(folder, monkeypatch, second):
    """The second run is interrupted before it has come as far as the first."""
    folder.interrupt(monkeypatch, "long")
    assert len(list(folder.output.glob("*unfinished*"))) == 1
    save(folder.images / f"{second}.jpg", size=(50, 20))  # changed in between
    folder.interrupt(monkeypatch, second)
    counts = folder.measure()
    assert counts.kept >= 3  # abc123, cmyk, and one of exif and gray
    rows = folder.rows()
    assert list(rows) == sorted(Path(name).stem for name in NAMES)
    assert rows[second]["width"] == "50"


def test_a_damaged_or_unordered_table_is_measured_again(folder):
    folder.measure()
    right = folder.table.read_bytes()
    header, *lines = right.splitlines(keepends=True)
    unordered = header + b"".join(lines[::-1])
    for damaged in (unordered, header + b"x" * 200_000 + right, b"\xff\x00" + right, b"", right[:-9]):
        status = folder.table.stat()
        folder.table.write_bytes(damaged)
        os.utime(folder.table, (status.st_atime, status.st_mtime))
        folder.measure()
        assert folder.table.read_bytes() == right


def test_without_md5_and_with_it_again(folder):
    folder.measure(md5=False)
    without = folder.rows()
    assert {row["md5"] for row in without.values()} == {""}
    assert folder.measure(md5=False) == (0, 6, 2)
    assert folder.measure() == (6, 0, 2)
    whole = folder.rows()
    assert {name: {**row, "md5": ""} for name, row in whole.items()} == without
    assert {len(row["md5"]) for row in whole.values()} == {32}
    folder.measure(md5=False)
    assert folder.rows() == whole  # known MD5s stay


def test_threads_do_not_change_the_table(folder, monkeypatch):
    monkeypatch.setattr(table, "BLOCK", 2)
    folder.measure(threads=1)
    first = folder.table.read_bytes()
    folder.table.unlink()
    folder.measure(threads=7)
    assert folder.table.read_bytes() == first
