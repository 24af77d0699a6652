"""Images are found with the right id, and every other file is listed with a reason."""

import os

import pytest

from oid.files import InputError
from oid.images.find import find_images, list_images


def make(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"")


def test_find_images_flat_and_in_prefix_folders(tmp_path):
    files = ["b.jpg", "a.JPEG", "007.png", "1e5.bmp", "c.d.webp", "abc/abcdef.jpg", "x1y/x1yz.Jpg"]
    make(tmp_path, *files, ".hidden.jpg", "notes.txt", "abc/xyz.jpg", "abc/.abcd.jpg", "longer/longer1.jpg", "jpg")
    (tmp_path / "folder.jpg").mkdir()
    found = find_images(tmp_path)
    assert list(found) == sorted(["b", "a", "007", "1e5", "c.d", "abcdef", "x1yz"])
    assert {path.relative_to(tmp_path).as_posix() for path in found.values()} == set(files)


def test_files_with_a_wrong_name_or_place_are_listed_with_a_reason(tmp_path):
    make(tmp_path, "a.jpg", "a.txt", "film.gif", "jpg", ".hidden.txt", "abc/xyz.jpg", "abc/abcd.jpg", "longer/text.txt")
    make(tmp_path, os.fsdecode(b"b\xff.jpg"))
    (tmp_path / "lost.jpg").symlink_to(tmp_path / "nowhere.jpg")
    (tmp_path / "loop.jpg").symlink_to(tmp_path / "loop.jpg")
    (tmp_path / "c.jpg").symlink_to(tmp_path / "a.jpg")
    images = list_images(tmp_path)
    assert images.names == ["a.jpg", "abc/abcd.jpg", "c.jpg"]
    reasons = {os.path.relpath(path, tmp_path): reason for path, reason in images.passed_over}
    lost = {"lost.jpg", "loop.jpg"}
    assert reasons.keys() == lost | {"a.txt", "film.gif", "jpg", "abc/xyz.jpg", os.fsdecode(b"b\xff.jpg")}
    assert all("leads nowhere" in reasons[name] for name in lost)
    assert "suffixes" in reasons["film.gif"]
    assert "abc" in reasons["abc/xyz.jpg"]
    assert "UTF-8" in reasons[os.fsdecode(b"b\xff.jpg")]


@pytest.mark.parametrize("names", [("a.jpg", "a.png"), ("abcd.jpg", "abc/abcd.jpg")])
def test_two_files_with_one_id_are_an_error_as_is_a_missing_folder(tmp_path, names):
    make(tmp_path, *names)
    with pytest.raises(InputError, match="does not exist"):
        find_images(tmp_path / "none")
    with pytest.raises(InputError) as error:
        find_images(tmp_path)
    assert all(name in str(error.value) for name in names)
