"""Proves `oid.files`: what is written is there as a whole or not at all, and every refusal is one sentence."""

import errno
import os
from pathlib import Path

import pytest

from oid.files import InputError, output_file, replacing, replacing_folder


def entries(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_the_file_is_replaced_when_the_block_ends_well(tmp_path):
    target = tmp_path / "new" / "table.csv.gz"
    for text in ("first", "second"):
        with replacing(target) as temporary:
            assert temporary.suffix == ".gz"  # writers choose their format by it
            temporary.write_text(text)
        assert target.read_text() == text
    assert entries(target.parent) == ["table.csv.gz"]


def write_half(target: Path, error: BaseException) -> None:
    with replacing(target) as temporary:
        temporary.write_text("half")
        raise error


@pytest.mark.parametrize("error", [ValueError("no"), KeyboardInterrupt(), BrokenPipeError(errno.EPIPE, "Broken pipe")])
def test_the_old_file_stays_when_the_block_fails(error, tmp_path):
    target = tmp_path / "table.csv"
    target.write_text("old")
    with pytest.raises(type(error)) as raised:
        write_half(target, error)
    assert raised.value is error
    assert target.read_text() == "old"
    assert entries(tmp_path) == ["table.csv"]


def test_a_full_disk_is_named_with_the_file_that_was_wanted(tmp_path):
    target = tmp_path / "table.csv"
    with pytest.raises(InputError) as raised:
        write_half(target, OSError(errno.ENOSPC, "No space left on device"))
    assert str(raised.value).startswith(f"{target} cannot be written (No space left on device): ")
    assert entries(tmp_path) == []


def test_a_folder_in_the_way_is_named_without_the_temporary_name(tmp_path):
    target = tmp_path / "table.csv"
    target.mkdir()
    with pytest.raises(InputError) as raised, replacing(target) as temporary:
        temporary.write_text("x")
    assert str(raised.value).startswith(f"{target} cannot be written (Is a directory): ")
    assert entries(tmp_path) == ["table.csv"]


def test_another_files_error_keeps_its_name(tmp_path):
    with pytest.raises(FileNotFoundError, match="source"), replacing(tmp_path / "table.csv"):
        (tmp_path / "source.csv").read_text()


def test_an_output_file_is_refused_before_the_work(tmp_path):
    (tmp_path / "file").write_text("x")
    assert output_file(tmp_path / "a" / "b" / "c.csv", "do") == tmp_path / "a" / "b" / "c.csv"
    assert output_file(str(tmp_path / "file"), "do") == tmp_path / "file"
    with pytest.raises(InputError, match=r" is a folder: give another place by --out$"):
        output_file(tmp_path, "give another place by --out")
    with pytest.raises(InputError, match="is not an ordinary file: do"):
        output_file(os.devnull, "do")
    with pytest.raises(InputError, match=r"file is not a writable folder: do"):
        output_file(tmp_path / "file" / "c.csv", "do")
    assert entries(tmp_path) == ["file"]


def test_a_folder_is_replaced_whole_or_not_at_all(tmp_path):
    folder = tmp_path / "run"
    for text in ("first", "second"):
        with replacing_folder(folder) as new:
            (new / text).write_text(text)
        assert entries(folder) == [text]
    with pytest.raises(InputError, match="run cannot be written"), replacing_folder(folder) as new:
        (new / "no" / "such").write_text("half")
    assert (entries(folder), entries(tmp_path)) == (["second"], ["run"])
