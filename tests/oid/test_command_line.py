"""Proves a00: flags are exactly main's keywords, a mistake is one sentence with exit code 2, importing does nothing."""

import importlib
import inspect
import os
import re
import subprocess
import sys
from typing import Literal

import pytest

from oid import command_line
from oid.files import InputError
from tests.helpers.project import ROOT, run_script

SCRIPTS = sorted(path.stem for path in ROOT.glob("a0[1-7]_*.py"))
received = {}


def main(
    *,
    number: int = 3,
    share: float = 0.5,
    name: str | None = None,
    levels: tuple[str, ...] = ("1", "2"),
    weights: tuple[float, ...] = (),
    method: Literal["wbf", "nms"] = "wbf",
    skip: bool = False,
) -> None:
    """What the toy does.

    Args:
        number: a whole number; 100 % of it
            on two lines
        share: a share
        name: a text
        levels: several texts
        weights: several numbers
        method: how
        skip: whether
    """
    received.clear()
    received.update(locals())


def call(*arguments, function=main):
    """The exit code of run_script."""
    with pytest.raises(SystemExit) as stop:
        command_line.run_script(function, arguments)
    return stop.value.code


DEFAULTS = {
    "number": 3,
    "share": 0.5,
    "name": None,
    "levels": ("1", "2"),
    "weights": (),
    "method": "wbf",
    "skip": False,
}


# === Values ==========================================================================================================
@pytest.mark.parametrize(
    ("arguments", "changed"),
    [
        ((), {}),
        (("--number", "7", "--share", "1e-3"), {"number": 7, "share": 0.001}),
        (("--number=-7", "--share", "2"), {"number": -7, "share": 2.0}),
        (("--name", "007"), {"name": "007"}),
        (("--levels", "all"), {"levels": ("all",)}),
        (("--levels", "1", "2", "01"), {"levels": ("1", "2", "01")}),
        (("--weights", "1", "0.5"), {"weights": (1.0, 0.5)}),
        (("--method", "nms"), {"method": "nms"}),
        (("--skip",), {"skip": True}),
        (("--skip", "True"), {"skip": True}),
        (("--skip", "false"), {"skip": False}),
    ],
)
def test_values_arrive_with_the_types_of_the_annotations(arguments, changed, capsys):
    assert call(*arguments) == 0
    expected = DEFAULTS | changed
    assert received == expected
    assert {name: type(value) for name, value in received.items()} == {n: type(v) for n, v in expected.items()}
    assert capsys.readouterr().err == ""


def test_settings_are_printed_and_the_changed_ones_starred(capsys):
    call("--number", "7", "--levels", "1", "2", "--weights", "1", "0.5")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].endswith("settings (* = not the default):")
    assert lines[1:] == [
        "  * number 7",
        "    share 0.5",
        "    name",
        "    levels 1 2",
        "  * weights 1.0 0.5",
        "    method wbf",
        "    skip False",
    ]


def test_help_has_every_flag_its_text_and_its_default(capsys):
    assert call("--help") == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "What the toy does." in text
    assert "Proves a00" in text  # the module's docstring
    assert "Args:" not in text
    assert "--number INT a whole number; 100 % of it on two lines (default: 3)" in text
    assert "--levels STR [STR ...] several texts (default: 1 2)" in text
    assert "--method {wbf,nms} how (default: wbf)" in text
    assert "--skip [true|false] whether (default: False)" in text
    assert "--name STR a text --levels" in text  # no default to tell


# === Mistakes ========================================================================================================
@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--number", "x"), "--number 'x' is not a whole number"),
        (("--number", "1.5"), "--number '1.5' is not a whole number"),
        (("--share", "much"), "--share 'much' is not a number"),
        (("--weights", "1", "b"), "--weights 'b' is not a number"),
        (("--skip", "maybe"), "--skip 'maybe' is neither true nor false"),
        (("--number",), "--number needs a value: --help explains it"),
        (("--levels", "--skip"), "--levels needs a value: --help explains it"),
        (("--numbr", "4"), "unknown flag --numbr: did you mean --number?"),
        (("--num", "4"), "unknown flag --num: did you mean --number?"),  # no abbreviations
        (("--Number=4",), "unknown flag --Number: did you mean --number?"),
        (("--qqqqqqqq",), "unknown flag --qqqqqqqq: --help lists the flags"),
        (("seven",), "'seven' belongs to no flag: --help lists the flags"),
        (("--number", "7", "8"), "'8' belongs to no flag: --help lists the flags"),
    ],
)
def test_a_mistake_is_one_sentence_and_exit_code_2(arguments, sentence, capsys):
    received.clear()
    assert call(*arguments) == 2
    printed = capsys.readouterr()
    assert printed.err == f"error: {sentence}\n"
    assert printed.out == ""  # no usage, no settings
    assert not received


def test_a_wrong_choice_lists_the_right_ones(capsys):
    assert call("--method", "average") == 2
    sentence = capsys.readouterr().err
    assert sentence.startswith("error: --method 'average' is none of its values: choose from ")
    assert "wbf" in sentence
    assert "nms" in sentence
    assert sentence.count("\n") == 1


def raising(error: BaseException):
    def main(*, number: int = 3) -> None:
        """Fails.

        Args:
            number: of no use
        """
        raise error

    return main


@pytest.mark.parametrize(
    ("error", "code", "last_line"),
    [
        (InputError("boxes.csv is empty: run a01"), 2, "error: boxes.csv is empty: run a01"),
        (PermissionError(13, "Permission denied", "out.csv"), 2, "error: out.csv: Permission denied"),
        (OSError(28, "No space left on device"), 2, "error: No space left on device"),
        (KeyboardInterrupt(), 130, "stopped by the keyboard; run the same command to go on"),
    ],
)
def test_what_main_raises_becomes_a_sentence_and_an_exit_code(error, code, last_line, capsys):
    assert call(function=raising(error)) == code
    assert capsys.readouterr().err.strip() == last_line


def test_a_bug_is_not_dressed_up_as_a_mistake():
    with pytest.raises(ZeroDivisionError):
        command_line.run_script(raising(ZeroDivisionError()), [])


def test_a_main_without_keywords_or_defaults_is_refused():
    with pytest.raises(TypeError, match="number must be keyword-only and have a default"):
        command_line.command_line(lambda number=3: None)

    def without_default(*, number: int) -> None: ...

    with pytest.raises(TypeError, match="number must be keyword-only and have a default"):
        command_line.command_line(without_default)


# === Values without a flag ===========================================================================================
def convert(source: str, count: int, *, output: str | None = None) -> None:
    """Converts.

    Args:
        source: file to read
        count: how many; 100 %
        output: file to write
    """
    received.clear()
    received.update(locals())


@pytest.mark.parametrize("arguments", [("a.pth", "3", "--output", "b"), ("--output", "b", "a.pth", "3")])
def test_arguments_in_front_of_the_keywords_need_no_flag(arguments, capsys):
    assert call(*arguments, function=convert) == 0
    assert received == {"source": "a.pth", "count": 3, "output": "b"}
    assert capsys.readouterr().out.splitlines()[1:] == ["  * source a.pth", "  * count 3", "  * output b"]


def test_help_of_a_value_without_a_flag(capsys):
    assert call("--help", function=convert) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "[--output STR] SOURCE COUNT" in text
    assert "SOURCE file to read COUNT how many; 100 %" in text


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ((), "SOURCE is missing: --help explains it"),
        (("a.pth",), "COUNT is missing: --help explains it"),
        (("a.pth", "many"), "COUNT 'many' is not a whole number"),
        (("a.pth", "3", "b"), "'b' belongs to no flag: --help lists the flags"),
    ],
)
def test_a_mistake_in_a_value_without_a_flag(arguments, sentence, capsys):
    received.clear()
    assert call(*arguments, function=convert) == 2
    printed = capsys.readouterr()
    assert (printed.err, printed.out) == (f"error: {sentence}\n", "")
    assert not received


# === The numbered scripts ============================================================================================
CONTRACT = {
    "a01": "levels",
    "a02": "splits",
    "a03": "backbone level image_size epochs steps_per_epoch batch_size validation_images skip_missing init_from run "
    "backbone_weights max_gt_boxes time_budget label_rules assignment sampling precision multi_scale patience",
    "a04": "run images predictions score_threshold nms_iou max_boxes",
    "a05": "predictions expanded hierarchy class_descriptions only_new nms_iou",
    "a06": "predictions ensemble weights fusion_iou skip_box_threshold method limit",
    "a07": "predictions boxes image_labels hierarchy class_descriptions group_of_weight metrics",
}
DEFAULTS_OF_THE_CONTRACT = [
    ("a04", "score_threshold", 0.01),
    ("a04", "nms_iou", 0.55),
    ("a04", "max_boxes", 300),
    ("a05", "nms_iou", 0.75),
    ("a06", "fusion_iou", 0.55),
    ("a06", "skip_box_threshold", 0.0),
    ("a06", "method", "wbf"),
    ("a06", "limit", 0),
    ("a07", "group_of_weight", 1.0),
]


def load(number: str):
    (script,) = (name for name in SCRIPTS if name.startswith(number))
    return importlib.import_module(script)


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_script_has_the_flags_of_the_contract_and_explains_them(script):
    module = load(script)
    text = command_line.command_line(module.main).format_help()
    flags = re.findall(r"^  --(\w+)", text, flags=re.MULTILINE)
    assert flags == list(inspect.signature(module.main).parameters)  # exactly main's keywords
    assert set(CONTRACT[script[:3]].split()) | {"output_path"} <= set(flags)
    assert "dataset_path" in flags or script.startswith("a06")  # which reads predictions only
    for commands in re.findall(rf"^    python {script}\.py *(.*(?:\\\n.*)*)", module.__doc__, flags=re.MULTILINE):
        used = re.findall(r"--(\w+)", commands)
        assert set(used) <= set(flags)  # the commands in the docstring are valid


@pytest.mark.parametrize(("script", "flag", "value"), DEFAULTS_OF_THE_CONTRACT)
def test_defaults_of_the_contract(script, flag, value):
    assert inspect.signature(load(script).main).parameters[flag].default == value


@pytest.mark.parametrize("script", [name for name in SCRIPTS if name[:3] in ("a03", "a04")])
def test_help_of_the_scripts_that_use_a_framework(script):
    done = run_script(f"{script}.py", "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert "--output_path" in done.stdout


def test_importing_every_script_does_nothing(tmp_path):
    assert len(SCRIPTS) == 7
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r}); sys.argv = ['x', '--no_such_flag']\n"
        f"import {', '.join(SCRIPTS)}\n"
        "heavy = [name for name in ('tensorflow', 'keras', 'jax', 'torch') if name in sys.modules]\n"
        "assert not heavy, heavy\n"
    )
    environment = os.environ | {"OID_PATH": "not/there", "OID_OUTPUT": "out"}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, env=environment)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert list(tmp_path.iterdir()) == []


def test_scripts_import_no_other_numbered_script():
    for script in SCRIPTS:
        text = (ROOT / f"{script}.py").read_text(encoding="utf-8")
        imported = set(re.findall(r"^\s*(?:import|from) (a0\d\w*)", text, flags=re.MULTILINE))
        assert imported == {"a00_utils_and_constants"}


# === a00 as a script, and the environment ============================================================================
def test_running_a00_names_every_path(tmp_path):
    annotations = tmp_path / "data" / "annotations"
    annotations.mkdir(parents=True)
    (annotations / "class-descriptions-boxable.csv").write_text("x,X\n")
    (tmp_path / "data" / "train").mkdir()
    environment = {"OID_PATH": str(tmp_path / "data"), "OID_OUTPUT": str(tmp_path / "results")}
    done = run_script("a00_utils_and_constants.py", environment=environment)
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    found = [line.split()[1] for line in lines if line.startswith("found")]
    missing = [line.split()[1] for line in lines if line.startswith("MISSING")]
    assert found == [str(annotations / "class-descriptions-boxable.csv"), str(tmp_path / "data" / "train")]
    assert str(annotations / "train-annotations-bbox.csv") in missing
    assert str(tmp_path / "results" / "level_1_files") in missing
    assert str(tmp_path / "results" / "train_image_params.csv") in missing
    assert sum(line.startswith("           ") for line in lines) == len(missing)  # each with a remedy
    assert "run a01_create_training_files.py" in done.stdout
    assert not (tmp_path / "results").exists()


def constants(**environment) -> list[str]:
    """DATASET_PATH and OUTPUT_PATH as a fresh Python sees them."""
    variables = {name: value for name, value in os.environ.items() if name not in ("OID_PATH", "OID_OUTPUT")}
    code = "import a00_utils_and_constants as a; print(a.DATASET_PATH, a.OUTPUT_PATH, sep='\\n')"
    command = [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(ROOT)!r}); {code}"]
    done = subprocess.run(command, capture_output=True, text=True, env=variables | environment, check=True)
    return done.stdout.splitlines()


def test_the_environment_says_where_the_data_lie():
    assert constants(OID_PATH="/a/b/") == ["/a/b/", "/a/b_output"]
    assert constants(OID_PATH="/a/b", OID_OUTPUT="/c") == ["/a/b", "/c"]
    default = constants()
    assert default[1] == default[0] + "_output"
    assert constants(OID_PATH="", OID_OUTPUT="") == default


@pytest.mark.parametrize("flags", [["--help"], ["--dataset_path", "nowhere"]])
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_closed_pipe_ends_a_script_quietly(flags, unbuffered):
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, str(ROOT / "a05_expand_hierarchy.py"), *flags]
    environment = os.environ | {"PYTHONUNBUFFERED": unbuffered}
    done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, text=True, env=environment, check=False)
    os.close(writing)
    assert (done.returncode, done.stderr) in [(141, ""), (0, "")]  # argparse itself passes over a closed pipe


def test_a_choice_may_be_open():
    """`Literal[...] | None` has another type than `str | None` has."""
    given = []

    def open_choice(*, way: Literal["fast", "exact"] | None = None, names: tuple[str, ...] | None = None) -> None:
        """Takes a way.

        Args:
            way: one of two
            names: some
        """
        given.append((way, names))

    assert call(function=open_choice) == 0
    assert call("--way", "exact", "--names", "a", "b", function=open_choice) == 0
    assert given == [(None, None), ("exact", ("a", "b"))]
    assert call("--way", "other", function=open_choice) == 2
