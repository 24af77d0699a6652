"""`python -m models.convert FILE.h5`: what a user can say, and what is refused before anything is written."""

import pytest

from models import convert
from models.legacy_checkpoint import LegacyStructure
from oid.files import InputError
from tests.helpers.legacy_checkpoint_files import write_checkpoint


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("file") / "x.h5"
    write_checkpoint(path, structure=LegacyStructure(50, 3, "explicit"))
    return path


def classes(folder, count):
    path = folder / f"{count}.csv"
    path.write_text("".join(f"/m/{k},Class {k}\n" for k in range(count)), encoding="utf-8")
    return str(path)


@pytest.mark.parametrize(
    ("count", "flags", "words"),
    [
        (None, {}, r"x\.h5 has 3 classes, not the 80 of COCO: name them by --classes with a CSV"),
        (4, {}, r"--classes .*4\.csv has 4 classes and .*x\.h5 has 3: give the list that it was trained on"),
        (3, {"image_size": 512}, r"--image_size 512 does not belong to .*x\.h5"),
        (3, {"min_side": 900, "max_side": 800}, "--min_side 900 --max_side 800: give at least 32, and the larger last"),
        (3, {"min_side": 5}, "--min_side 5 --max_side 1024: give at least 32"),
    ],
)
def test_refused_in_one_sentence(tmp_path, file, count, flags, words):
    given = {"classes": classes(tmp_path, count)} if count else {}
    with pytest.raises(InputError, match=words):
        convert.main(str(file), output=str(tmp_path / "run"), **given, **flags)
    assert not (tmp_path / "run").exists()


def test_flags_of_the_other_kind(tmp_path):
    (tmp_path / "x.pth").write_bytes(b"PK\x03\x04")
    with pytest.raises(InputError, match="--min_side 600 does not belong to"):
        convert.main(str(tmp_path / "x.pth"), output=str(tmp_path / "run"), min_side=600)


@pytest.mark.parametrize(("layers", "sides"), [(50, (768, 1024)), (101, (768, 1024)), (152, (600, 800))])
def test_sides_are_the_published_ones_unless_said(layers, sides):
    structure = LegacyStructure(layers, 1, "same")
    settings = convert.legacy_settings(structure, {"/m/0": "Class"})
    assert (settings["preprocessing"]["min_side"], settings["preprocessing"]["max_side"]) == sides
    assert (settings["backbone"], settings["clip"]) == (f"legacy_resnet{layers}", "last_pixel")
    settings = convert.legacy_settings(structure, {"/m/0": "Class"}, 64, 96)
    assert (settings["preprocessing"]["min_side"], settings["preprocessing"]["max_side"]) == (64, 96)
