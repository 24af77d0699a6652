"""a02: one row per readable image, a reason for every other, and a second run that reads only what has changed."""

import csv
import hashlib
import os
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import a02_find_image_parameters as a02
from oid.files import InputError

PROJECT = Path(__file__).parents[2]


def save(path, size=(40, 30), mode="RGB", **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(zlib.crc32(path.name.encode())).integers(
        0, 255, (size[1], size[0], 3), dtype=np.uint8
    )
    Image.fromarray(noise).convert(mode).save(path, **options)
    os.utime(path, (1_600_000_000, 1_600_000_000))  # old, as downloaded images are


def read(path):
    with Path(path).open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def data(tmp_path):
    turned = Image.Exif()
    turned[0x0112] = 6
    train = tmp_path / "data/train"
    save(train / "exif.jpg", exif=turned)
    save(train / "gray.jpg", mode="L")
    save(train / "cmyk.jpg", mode="CMYK")
    save(train / "rgba.png", mode="RGBA")
    save(train / "long.jpeg")
    save(train / "abc/abc123.JPG")
    (train / "empty.jpg").write_bytes(b"")
    (train / "text.jpg").write_text("no image")
    (train / "cut.jpg").write_bytes((train / "long.jpeg").read_bytes()[:-100])
    save(tmp_path / "data/validation/007.jpg")
    return tmp_path


def run(data, **options):
    a02.main(dataset_path=str(data / "data"), output_path=str(data / "out"), statistics=False, **options)


def test_rows_and_problems(data, capsys):
    run(data)
    rows = read(data / "out/train_image_params.csv")
    assert list(rows[0]) == ["id", "width", "height", "channel", "size", "md5"]
    assert [row["id"] for row in rows] == sorted(["exif", "gray", "cmyk", "rgba", "long", "abc123"])
    found = {row["id"]: (row["width"], row["height"], row["channel"]) for row in rows}
    assert found["exif"] == ("40", "30", "3")
    assert found["gray"][2] == "1"
    assert found["cmyk"][2] == found["rgba"][2] == "4"
    content = (data / "data/train/abc/abc123.JPG").read_bytes()
    assert rows[0]["size"] == str(len(content))
    assert rows[0]["md5"] == hashlib.md5(content).hexdigest()
    problems = {Path(row["path"]).name: row["reason"] for row in read(data / "out/train_image_problems.csv")}
    assert problems.keys() == {"cut.jpg", "empty.jpg", "text.jpg"}
    assert "cut short" in problems["cut.jpg"]
    assert "is empty" in problems["empty.jpg"]
    assert [row["id"] for row in read(data / "out/validation_image_params.csv")] == ["007"]
    printed = capsys.readouterr().out
    assert "3 cannot be used" in printed
    assert "test is not there" in printed
    assert not (data / "out/validation_image_problems.csv").exists()
    assert not list((data / "out").glob("*unfinished*"))


def test_exif_swaps_the_sides_and_the_table_is_not_reused_for_the_other_orientation(data, capsys):
    run(data, orientation="stored")
    capsys.readouterr()
    run(data, orientation="exif")
    assert " 0 unchanged" in capsys.readouterr().out
    sizes = {row["id"]: (row["width"], row["height"]) for row in read(data / "out/train_image_params.csv")}
    assert sizes["exif"] == ("30", "40")
    assert sizes["long"] == ("40", "30")


def test_a_second_run_keeps_unchanged_rows_only(data, capsys):
    run(data)
    first = (data / "out/train_image_params.csv").read_bytes()
    capsys.readouterr()
    run(data)
    assert "0 measured, 6 unchanged" in capsys.readouterr().out
    assert (data / "out/train_image_params.csv").read_bytes() == first
    save(data / "data/train/gray.jpg", size=(50, 20))  # another size
    content = (data / "data/train/rgba.png").read_bytes()
    (data / "data/train/rgba.png").write_bytes(content)  # newer
    (data / "data/train/cmyk.jpg").unlink()
    (data / "data/train/cut.jpg").unlink()
    run(data)
    assert "2 measured, 3 unchanged" in capsys.readouterr().out
    rows = {row["id"]: row for row in read(data / "out/train_image_params.csv")}
    assert rows["gray"]["width"] == "50"
    assert "cmyk" not in rows
    assert len(read(data / "out/train_image_problems.csv")) == 2


def test_an_interrupted_run_goes_on_where_it_was(data, monkeypatch, capsys):
    monkeypatch.setattr(a02, "BLOCK", 1)
    real, calls = a02.image_parameters, []

    def interrupted(path, orientation, md5):
        calls.append(path)
        if Path(path).stem == "long":
            raise KeyboardInterrupt
        return real(path, orientation, md5=md5)

    monkeypatch.setattr(a02, "image_parameters", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(data, threads=1, splits=("train",))
    assert not (data / "out/train_image_params.csv").exists()
    monkeypatch.setattr(a02, "image_parameters", real)
    capsys.readouterr()
    run(data, splits=("train",))
    assert "2 measured, 4 unchanged" in capsys.readouterr().out  # before long come abc123, cmyk, exif and gray
    assert len(read(data / "out/train_image_params.csv")) == 6
    assert not list((data / "out").glob("*unfinished*"))


@pytest.mark.parametrize("second", ["exif", "gray"])
def test_two_interruptions_one_after_the_other(data, monkeypatch, capsys, second):
    """The second comes behind the first one's place ("gray"), or before it ("exif"): no row is lost."""
    monkeypatch.setattr(a02, "BLOCK", 1)
    monkeypatch.setattr(a02, "AHEAD", 1)
    real = a02.image_parameters

    def interrupted(name):
        def function(path, orientation, md5):
            if Path(path).stem == name:
                raise KeyboardInterrupt
            return real(path, orientation, md5=md5)

        return function

    for name in ("long", second):
        if name == second:
            save(data / f"data/train/{name}.jpg", size=(50, 20))  # changed in between
        monkeypatch.setattr(a02, "image_parameters", interrupted(name))
        with pytest.raises(KeyboardInterrupt):
            run(data, threads=1, splits=("train",))
    assert not list((data / "out").glob("*problems*"))
    monkeypatch.setattr(a02, "image_parameters", real)
    capsys.readouterr()
    run(data, splits=("train",))
    assert "3 measured, 3 unchanged" in capsys.readouterr().out  # abc123, cmyk and one of exif and gray are kept
    rows = read(data / "out/train_image_params.csv")
    assert [row["id"] for row in rows] == sorted(row["id"] for row in rows)
    assert len(rows) == 6
    assert {row["id"]: row["width"] for row in rows}[second] == "50"
    assert not list((data / "out").glob("*unfinished*"))


def test_a_damaged_or_unordered_table_is_measured_again(data):
    run(data, splits=("train",))
    table = data / "out/train_image_params.csv"
    right = table.read_bytes()
    header, *lines = right.splitlines(keepends=True)
    for damaged in (
        header + b"".join(lines[::-1]),
        header + b"x" * 200_000 + right,
        b"\xff\x00" + right,
        b"",
        right[:-9],
    ):
        status = table.stat()
        table.write_bytes(damaged)
        os.utime(table, (status.st_atime, status.st_mtime))
        run(data, splits=("train",))
        assert table.read_bytes() == right


def test_without_md5_and_with_it_again(data, capsys):
    run(data, splits=("train",), no_md5=True)
    without = read(data / "out/train_image_params.csv")
    assert {row["md5"] for row in without} == {""}
    assert len(read(data / "out/train_image_problems.csv")) == 3
    capsys.readouterr()
    run(data, splits=("train",), no_md5=True)
    assert " 0 measured, 6 unchanged" in capsys.readouterr().out
    run(data, splits=("train",))
    assert " 6 measured, 0 unchanged" in capsys.readouterr().out
    whole = read(data / "out/train_image_params.csv")
    assert [{**row, "md5": ""} for row in whole] == without
    assert {len(row["md5"]) for row in whole} == {32}
    run(data, splits=("train",), no_md5=True)  # what is known stays
    assert read(data / "out/train_image_params.csv") == whole


def test_other_files_are_problems_and_two_of_one_stem_an_error(data):
    train = data / "data/train"
    (train / "long.txt").write_text("beside its image")
    (train / os.fsdecode(b"\xff.jpg")).write_bytes(b"")
    Image.new("RGB", (8, 8)).save(train / "film.gif")
    Image.new("RGB", (8, 8)).save(train / "gif.jpg", format="GIF")
    run(data, splits=("train",))
    reasons = {Path(row["path"]).name: row["reason"] for row in read(data / "out/train_image_problems.csv")}
    assert reasons.keys() == {"cut.jpg", "empty.jpg", "text.jpg", "long.txt", "\\udcff.jpg", "film.gif", "gif.jpg"}
    assert "no JPEG" in reasons["gif.jpg"]
    assert len(read(data / "out/train_image_params.csv")) == 6
    before = (data / "out/train_image_params.csv").read_bytes()
    save(train / "gray.png")
    with pytest.raises(InputError, match="same image id gray"):
        run(data, splits=("train",))
    assert (data / "out/train_image_params.csv").read_bytes() == before


def test_threads_do_not_change_the_table(data, monkeypatch):
    monkeypatch.setattr(a02, "BLOCK", 2)
    run(data, threads=1)
    first = (data / "out/train_image_params.csv").read_bytes()
    a02.main(dataset_path=str(data / "data"), output_path=str(data / "other"), threads=7, statistics=False)
    assert (data / "other/train_image_params.csv").read_bytes() == first


def test_nothing_there_is_an_error(tmp_path):
    (tmp_path / "train").mkdir()
    with pytest.raises(InputError, match="has no images in train, validation"):
        a02.main(dataset_path=str(tmp_path), output_path=str(tmp_path / "out"), splits=("train", "validation"))


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--orientation", "sideways"], "is none of its values"),
        (["--threads", "-2"], "negative"),
        (["--threads", "two"], "is not a whole number"),
        (["--split", "train"], "did you mean --splits"),
        (["--splits", "holidays"], "has no images in holidays"),
    ],
)
def test_mistakes_are_one_sentence(data, flags, words):
    command = [sys.executable, "a02_find_image_parameters.py", "--dataset_path", str(data / "data"), *flags]
    done = subprocess.run([*command, "--output_path", str(data / "out")], capture_output=True, text=True, cwd=PROJECT)
    assert done.returncode == 2
    assert words in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not (data / "out").exists()


def test_as_a_script(data):
    command = [sys.executable, "a02_find_image_parameters.py", "--dataset_path", str(data / "data")]
    done = subprocess.run([*command, "--output_path", str(data / "out")], capture_output=True, text=True, cwd=PROJECT)
    assert done.returncode == 0
    assert "6 measured" in done.stdout
    assert len(read(data / "out/train_image_params.csv")) == 6
