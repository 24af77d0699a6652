"""`python -m convert.classes` gives the order of the published checkpoints' outputs, or refuses."""

import csv
import hashlib
import shutil
from pathlib import Path

import pytest

from convert.classes import (
    ALL,
    COCO_NAMES,
    INNER,
    LEAVES,
    classes_of_outputs,
    in_another_order,
    main,
    published_classes,
)
from oid import paths
from oid.annotations import read_class_descriptions
from tests.helpers.project import refused, shared

# SHA-256 of the labels, one a line, that the constants of the published repository give, by its class descriptions
PUBLISHED = {
    443: "975d0b705ab6464cd3315402ffeaa0a627a3fbaad8ebaa55bc2898b3c511ca7a",
    500: "7ca45ddc6d52067ef0267686d0d82389c9622a0aa8627249a755633747dfa9e9",
}


def drawn_classes() -> dict[str, str]:
    """Names by label: 443 leaves in no alphabetical order, the inner classes among them, and one more."""
    names = [f"Leaf {k * 101 % LEAVES:03d}" for k in range(LEAVES)]
    names[7:7] = INNER
    return {f"/m/{k:03d}": name for k, name in enumerate([*names, "Excluded"])}


def counted_classes() -> dict[str, str]:
    """The drawn classes that the challenge counts."""
    return {label: name for label, name in drawn_classes().items() if name != "Excluded"}


def data_set(folder: Path, names: dict[str, str], challenge: dict[str, str]) -> Path:
    (folder / "annotations").mkdir(parents=True)
    for name, classes in ((paths.CLASS_DESCRIPTIONS, names), (paths.CHALLENGE_CLASS_DESCRIPTIONS, challenge)):
        with open(folder / "annotations" / name, "w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows(classes.items())
    return folder


def test_leaves_by_name_and_then_the_inner_classes(tmp_path, capsys):
    """Names are those of all boxable classes: the challenge's file has some twice."""
    names = drawn_classes()
    folder = data_set(tmp_path / "data", names, dict.fromkeys(counted_classes(), "Bench"))
    for number in (LEAVES, ALL):
        main(str(folder), output=str(tmp_path / "out.csv"), number=number)
        found = read_class_descriptions(tmp_path / "out.csv")
        assert list(found.values()) == [*(f"Leaf {k:03d}" for k in range(LEAVES)), *INNER][:number]
        assert all(names[label] == name for label, name in found.items())
        assert f"{number} classes, from Leaf 000 to " in capsys.readouterr().out


@pytest.mark.parametrize("number", PUBLISHED)
def test_the_published_order(tmp_path, number):
    (tmp_path / "annotations").mkdir()
    for name in (paths.CLASS_DESCRIPTIONS, paths.CHALLENGE_CLASS_DESCRIPTIONS):
        shutil.copy(shared("data", "oid_metadata", name), tmp_path / "annotations")
    main(str(tmp_path), output=str(tmp_path / "out.csv"), number=number)
    classes = read_class_descriptions(tmp_path / "out.csv")
    assert hashlib.sha256("\n".join(classes).encode()).hexdigest() == PUBLISHED[number]
    assert not in_another_order(list(classes.values()))


@pytest.mark.parametrize(
    ("names", "challenge", "message"),
    [
        ({}, {"/m/new": "New"}, "1 classes of the challenge have no name, /m/new for example"),
        ({"/m/007": "Tool"}, {}, "the challenge has no class Toy"),
        ({"/m/000": "Leaf 001"}, {}, "the challenge has 500 classes with 499 names"),
    ],
)
def test_other_classes_are_refused(tmp_path, names, challenge, message):
    folder = data_set(tmp_path / "data", drawn_classes() | names, counted_classes() | challenge)
    with refused(message):
        main(str(folder), output=str(tmp_path / "out.csv"))
    assert not (tmp_path / "out.csv").exists()


def test_another_order_is_noticed():
    drawn = drawn_classes()
    order = [name for _, name in published_classes(drawn, set(counted_classes()))]
    assert not in_another_order(order)
    assert not in_another_order(order[:LEAVES])
    assert in_another_order([name for name in drawn.values() if name in order])  # as a01 has them
    assert not in_another_order(order[:80][::-1])  # not as many as the published have


def test_coco_has_80_classes():
    classes = classes_of_outputs(80, Path("m2det512_vgg.pth"), None)
    assert tuple(entry.name for entry in classes) == COCO_NAMES
    assert not any(" " in entry.label for entry in classes)
    places = {name: index for index, name in enumerate(COCO_NAMES, start=1)}  # output 0 is the background
    known = {"traffic light": 10, "stop sign": 12, "dog": 17, "backpack": 25, "banana": 47, "tv": 63, "toothbrush": 80}
    assert {name: places[name] for name in known} == known


def test_classes_come_from_a_file_of_as_many_or_are_numbers(tmp_path):
    (tmp_path / "classes.csv").write_text("/m/a,Apple\n/m/b,Pear\n", encoding="utf-8")
    assert classes_of_outputs(2, Path("x.h5"), tmp_path / "classes.csv") == (("/m/a", "Apple"), ("/m/b", "Pear"))
    assert classes_of_outputs(2, Path("x.h5"), None) == (("0", "0"), ("1", "1"))
    with refused("classes.csv has 2 classes, x.h5 has 3 without the background"):
        classes_of_outputs(3, Path("x.h5"), tmp_path / "classes.csv")
