"""Proves a01 as a command: flags, mistakes in one sentence, equal files in every run, and the real levels."""

import itertools
from pathlib import Path

import pytest

from a01_create_training_files import main
from oid import paths
from oid.columns import BOX_COLUMNS
from oid.files import InputError
from tests.helpers.project import run_script
from tests.helpers.small_open_images import BIG, CLASSES, LEFT, ONE_OF_EACH, RIGHT, box, make_data_set


# === The command =====================================================================================================
def everything_below(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_files_do_not_depend_on_threads_hash_seeds_or_an_earlier_run(tmp_path):
    names, rectangles = itertools.cycle(CLASSES), itertools.cycle([LEFT, RIGHT, BIG])
    rows = [
        box(f"i{number * 7 % 800}", next(names), next(rectangles), "1" if number % 9 == 0 else "0")
        for number in range(3000)
    ]
    labels = [(f"i{number * 13 % 1000}", next(names), str(number % 2)) for number in range(2000)]
    data_set = make_data_set(tmp_path / "data", rows, rows[:100], labels)
    found = []
    for output, threads in (("one", "1"), ("two", "3"), ("two", "2")):
        done = run_script(
            "a01_create_training_files.py",
            *("--dataset_path", data_set, "--output_path", tmp_path / output, "--levels", "1", "2", "all"),
            environment={"POLARS_MAX_THREADS": threads, "PYTHONHASHSEED": threads},
        )
        assert (done.returncode, done.stderr) == (0, "")
        found.append(everything_below(tmp_path / output))
    assert found[0] == found[1] == found[2]
    assert len(found[0]) == 3 * 9  # and no temporary file


def test_a_mistake_is_one_sentence_and_leaves_nothing_behind(tmp_path):
    good = make_data_set(tmp_path / "good", ONE_OF_EACH)
    bad = make_data_set(tmp_path / "data", ONE_OF_EACH, [("v", "", "apple", "1", "x", "1", "0", "1", *"00000")])
    (tmp_path / "file").write_text("not a folder")
    place = ("--dataset_path", bad, "--output_path", tmp_path / "out")
    for arguments in (
        *(place, (*place, "--levels", "7"), (*place, "--min_boxes", "many"), (*place, "--minimum", "3")),
        ("--dataset_path", good, "--output_path", tmp_path / "file", "--levels", "1"),
    ):
        done = run_script("a01_create_training_files.py", *arguments)
        assert done.returncode == 2
        assert done.stderr.startswith("error: ")
        assert done.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()


def damaged(tmp_path: Path, name: str, text: str | bytes | None) -> Path:
    """A good data set whose file `name` is replaced, or removed."""
    labels = [("a", "apple", "1")]
    data_set = make_data_set(tmp_path / "data", ONE_OF_EACH, ONE_OF_EACH[:3], labels, labels)
    path = data_set / "annotations" / name
    if text is None:
        path.unlink()
    else:
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return data_set


HEADER = ",".join(BOX_COLUMNS)
TRAIN, VALIDATION = "train-annotations-bbox.csv", "validation-annotations-bbox.csv"
TRAIN_LABELS = "train-annotations-human-imagelabels-boxable.csv"
LABEL_HEADER = "ImageID,Source,LabelName,Confidence"


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        (VALIDATION, None, "does not exist"),
        (TRAIN, None, "does not exist"),
        (paths.HIERARCHY, None, "does not exist"),
        (paths.CLASS_DESCRIPTIONS, None, "does not exist"),
        (paths.CHALLENGE_CLASS_DESCRIPTIONS, "dragon,Dragon\n", "no class in common"),
        (TRAIN, HEADER + "\n", "holds no boxes"),
        (TRAIN, f"{HEADER}\na,x,apple,1,0,1,0,1,0,0,0,0,0\na,x,apple,1,0,1,zero,1,0,0,0,0,0\n", "line 3: "),
        (TRAIN, f"{HEADER}\na,x,apple,1,0,1,nan,1,0,0,0,0,0\n", "line 2: "),
        (TRAIN, f"{HEADER}\na,x,apple,1,0,1,0.9,0.8,0,0,0,0,0\n", "Min <= Max"),
        (TRAIN, f"{HEADER}\na,x,apple,1,0,inf,0,1,0,0,0,0,0\n", "line 2: "),
        (TRAIN, f"{HEADER}\na,x,apple,1,0,1,0,1,0,0,yes,0,0\n", "IsGroupOf 0, 1 or -1"),
        (TRAIN, f"{HEADER}\na,x,,1,0,1,0,1,0,0,0,0,0\n", "line 2: "),
        (TRAIN, f"{HEADER}\na,x,apple,1,0,1,0,1,0,0,0,0,0\nb,x,ap", "line 3: "),  # a download that broke off
        (TRAIN, f"{HEADER}\na,x,apple,1,0,1,0,1,0,0,0,0,0,9\n", "line 2: 14 values under a header of 13"),
        (TRAIN, f'{HEADER}\na,x,"apple,1,0,1,0,1,0,0,0,0,0\n', "line 2: not CSV"),
        (TRAIN, f"{HEADER}\n\na,\xe9,apple,1,0,1,0,1,0,0,0,0,0\n".encode("latin-1"), "line 3: not UTF-8"),
        (TRAIN, HEADER.encode("utf-16"), "not UTF-8"),
        (TRAIN, f"{HEADER}\ra,x,apple,1,0,1,0,1,0,0,0,0,0\r", "the lines end with CR alone"),
        (TRAIN_LABELS, "ImageID,LabelName\na,apple\n", "column Confidence is missing"),
        (TRAIN_LABELS, f"{LABEL_HEADER}\na,v,apple,1\na,v,apple,0.7\n", "line 3: "),
        (TRAIN_LABELS, f"{LABEL_HEADER}\n,v,apple,1\n", "line 2: "),
        (TRAIN_LABELS, f"{LABEL_HEADER}\na,v,\xe9,1\n".encode("latin-1"), "line 2: not UTF-8"),
    ],
)
def test_bad_files_are_named(tmp_path, name, text, message):
    data_set = damaged(tmp_path, name, text)
    with pytest.raises(InputError) as error:
        main(dataset_path=str(data_set), output_path=str(tmp_path / "out"), levels=("1",))
    assert name in str(error.value)
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"levels": ("4",)}, "no class has level 4: choose from 1 2 3 all rare: change --levels"),
        ({"levels": ("1", "All")}, "no class has level All"),
        ({"levels": ("2", "3"), "parent_label": "car"}, "no class has level 2: choose"),
        ({"min_boxes": -1}, "--min_boxes is -1"),
        ({"rare_below": 0}, "--rare_below is 0"),
        ({"levels": ("1",), "min_boxes": 9}, "none of its 5 classes has 9 or more training boxes"),
        ({"levels": ("rare",), "rare_below": 1}, "none of its 8 classes has 1 or more and fewer than 1 training boxes"),
        ({"dataset_path": "/nowhere/at/all"}, "/nowhere/at/all does not exist"),
        ({"labels_filter": ("apple", "tomatoe")}, "name or label tomatoe, did you mean tomato, all? Change --"),
        (
            {"labels_filter": (",",)},
            "no class is named: give names or labels, for example Helmet,Tree: change --labels_filter",
        ),
        ({"parent_label": "fruits, all"}, "name or label fruits, all, did you mean fruit, all? Change --parent_label"),
        ({"parent_label": ""}, "--parent_label is empty"),
        ({"output_path": ""}, "--output_path is empty"),
        ({"parent_label": "entity"}, "no class has the name or label entity"),
        ({"labels_filter": ("apple",), "parent_label": "fruit"}, "give this flag or --labels_filter, not both"),
    ],
)
def test_bad_flags_are_named(tmp_path, options, message):
    data_set = make_data_set(tmp_path / "data", ONE_OF_EACH)
    with pytest.raises(InputError) as error:
        main(**{"dataset_path": str(data_set), "output_path": str(tmp_path / "out"), **options})
    assert message in str(error.value)
    assert not (tmp_path / "out").exists()
