"""Proves that flags are exactly main's keywords, a mistake is one sentence with exit code 2, importing does nothing."""

import importlib
import inspect
import os
import re
import subprocess
import sys
from typing import Literal

import pytest

from oid import command_line
from oid.files import InputError, Unfinished, remedy
from tests.helpers.project import ROOT

SCRIPTS = sorted(path.stem for path in ROOT.glob("a0[1-7]_*.py"))
received = {}


def main(
    *,
    number: int = 3,
    share: float = 0.5,
    name: str | None = None,
    folder: str = "~/data",
    levels: tuple[str, ...] = ("1", "2"),
    weights: tuple[float, ...] | None = None,
    method: Literal["wbf", "nms"] = "wbf",
    way: Literal["fast", "exact"] | None = None,
    skip: bool = False,
) -> None:
    """What the toy does.

    Args:
        number: a whole number; 100 % of it
            on two lines
        share: a share
        name: a text
        folder: where
        levels: several texts
        weights: several numbers
        method: how
        way: one of two, or neither
        skip: whether
    """
    received.clear()
    received.update(locals())


def convert(source: str, count: int, *, output: str | None = None) -> None:
    """Converts.

    Args:
        source: file to read
        count: how many; 100 %
        output: file to write
    """
    received.clear()
    received.update(locals())


def call(*arguments, function=main):
    """The exit code of run_script."""
    received.clear()
    with pytest.raises(SystemExit) as stop:
        command_line.run_script(function, arguments)
    return stop.value.code


# === Values ==========================================================================================================
HOME = os.path.expanduser("~")
DEFAULTS = {"number": 3, "share": 0.5, "name": None, "folder": f"{HOME}/data", "levels": ("1", "2")}
DEFAULTS |= {"weights": None, "method": "wbf", "way": None, "skip": False}


@pytest.mark.parametrize(
    ("arguments", "changed"),
    [
        ("", {}),
        ("--number=-7 --share 1e-3", {"number": -7, "share": 0.001}),
        ("--name 007 --folder ~", {"name": "007", "folder": HOME}),
        ("--name a~/b --folder=~/c", {"name": "a~/b", "folder": f"{HOME}/c"}),
        ("--levels 1 ~/a 01", {"levels": ("1", f"{HOME}/a", "01")}),
        ("--weights 1 0.5", {"weights": (1.0, 0.5)}),
        ("--method nms --way exact", {"method": "nms", "way": "exact"}),
        ("--skip", {"skip": True}),
        ("--skip True", {"skip": True}),
        ("--skip false", {"skip": False}),
    ],
)
def test_values_arrive_with_the_types_of_the_annotations(arguments, changed, capsys):
    assert call(*arguments.split()) == 0
    expected = DEFAULTS | changed
    assert received == expected
    assert {name: type(value) for name, value in received.items()} == {n: type(v) for n, v in expected.items()}
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("arguments", [("a.pth", "3", "--output", "b"), ("--output", "b", "a.pth", "3")])
def test_parameters_without_a_default_need_no_flag(arguments, capsys):
    assert call(*arguments, function=convert) == 0
    assert received == {"source": "a.pth", "count": 3, "output": "b"}
    assert capsys.readouterr().out.splitlines()[1:] == ["  * source a.pth", "  * count 3", "  * output b"]


def test_settings_are_printed_and_the_changed_ones_starred(capsys):
    call("--number", "7", "--levels", "1", "2", "--weights", "1", "0.5")
    first, *lines = capsys.readouterr().out.splitlines()
    assert first.endswith("settings (* = not the default):")
    assert lines[:3] == ["  * number 7", "    share 0.5", "    name"]
    assert lines[3:6] == [f"    folder {HOME}/data", "    levels 1 2", "  * weights 1.0 0.5"]
    assert lines[6:] == ["    method wbf", "    way", "    skip False"]


def test_help_has_every_flag_its_text_and_its_default(capsys):
    assert call("--help") == 0
    text = " ".join(capsys.readouterr().out.split())
    assert text.index("Proves that flags") < text.index("What the toy does.")  # the module's docstring, then main's
    assert "Args:" not in text
    assert "--number INT a whole number; 100 % of it on two lines (default: 3)" in text
    assert "--levels STR [STR ...] several texts (default: 1 2)" in text
    assert "--method {wbf,nms} how (default: wbf)" in text
    assert "--skip [true|false] whether (default: False)" in text
    assert "--name STR a text --folder" in text  # no default to tell
    assert call("--help", function=convert) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "[--output STR] SOURCE COUNT" in text
    assert "SOURCE file to read COUNT how many; 100 %" in text


# === Mistakes ========================================================================================================
@pytest.mark.parametrize(
    ("function", "arguments", "sentence"),
    [
        (main, "--number x", "--number 'x' is not a whole number"),
        (main, "--share much", "--share 'much' is not a number"),
        (main, "--weights 1 b", "--weights 'b' is not a number"),
        (main, "--skip maybe", "--skip 'maybe' is neither true nor false"),
        (main, "--method average", "--method 'average' is none of its values: choose from wbf, nms"),
        (main, "--number", "--number needs a value: --help explains it"),
        (main, "--levels --skip", "--levels needs a value: --help explains it"),
        (main, "--numbr 4", "unknown flag --numbr: did you mean --number?"),
        (main, "--num 4", "unknown flag --num: did you mean --number?"),  # no abbreviations
        (main, "--Number=4", "unknown flag --Number: did you mean --number?"),
        (main, "--qqqqqqqq", "unknown flag --qqqqqqqq: --help lists the flags"),
        (main, "seven", "'seven' belongs to no flag: --help lists the flags"),
        (convert, "", "SOURCE is missing: --help explains it"),
        (convert, "a.pth", "COUNT is missing: --help explains it"),
    ],
)
def test_a_mistake_is_one_sentence_and_exit_code_2(function, arguments, sentence, capsys):
    assert call(*arguments.split(), function=function) == 2
    printed = capsys.readouterr()
    assert (printed.err, printed.out) == (f"error: {sentence}\n", "")  # no usage, no settings
    assert not received


def raising(error: BaseException):
    def main() -> None:
        raise error

    return main


@pytest.mark.parametrize(
    ("error", "code", "last_line"),
    [
        (InputError("boxes.csv is empty: run a01"), 2, "error: boxes.csv is empty: run a01"),
        (PermissionError(13, "Permission denied", "out.csv"), 2, "error: out.csv: Permission denied"),
        (OSError(28, "No space left on device"), 2, "error: No space left on device"),
        (KeyboardInterrupt(), 130, "stopped by the keyboard"),
        (
            Unfinished("stopped after 3 epochs: run the same command again"),
            75,
            "stopped after 3 epochs: run the same command again",
        ),
    ],
)
def test_errors_of_main_become_a_sentence_and_an_exit_code(error, code, last_line, capsys, monkeypatch):
    monkeypatch.delenv("OID_DEBUG", raising=False)
    assert call(function=raising(error)) == code
    assert capsys.readouterr().err.strip() == last_line
    monkeypatch.setenv("OID_DEBUG", "1")
    assert call(function=raising(error)) == code
    first, *_, last = capsys.readouterr().err.splitlines()
    assert (first, last) == ("Traceback (most recent call last):", last_line)
    with pytest.raises(ZeroDivisionError):  # a bug keeps its traceback
        command_line.run_script(raising(ZeroDivisionError()), [])


def test_remedy_follows_a_message_and_a_question():
    for message, whole in (("a is wrong", "a is wrong: give b"), ("did you mean b?", "did you mean b? Give b")):
        with pytest.raises(InputError) as raised, remedy("give b"):
            raise InputError(message)
        assert str(raised.value) == whole


def test_check_flag_names_the_value():
    command_line.check_flag(True, "iou", 2, "a number from 0 to 1")
    with pytest.raises(InputError, match=r"^--levels is 1 x: give levels of a01$"):
        command_line.check_flag(False, "levels", ("1", "x"), "levels of a01")


def test_a_main_without_keywords_or_defaults_is_refused():
    def without_default(*, number: int) -> None: ...

    for function in (lambda number=3: None, without_default):
        with pytest.raises(TypeError, match="number must be keyword-only and have a default"):
            command_line.command_line(function)


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("flags", [["--help"], ["--dataset_path", "nowhere"]])
def test_output_that_cannot_be_written_is_no_traceback(flags, unbuffered):
    command = [sys.executable, str(ROOT / "a05_expand_hierarchy.py"), *flags]
    reading, closed_pipe = os.pipe()
    os.close(reading)
    ends = {(0, "")}  # argparse itself ignores what it cannot print
    with os.fdopen(closed_pipe, "w") as pipe, open("/dev/full", "w") as full:
        for stdout, end in ((pipe, (141, "")), (full, (2, "error: No space left on device\n"))):
            environment = os.environ | {"PYTHONUNBUFFERED": unbuffered}
            done = subprocess.run(
                command, stdout=stdout, stderr=subprocess.PIPE, text=True, env=environment, check=False
            )
            assert (done.returncode, done.stderr) in ends | {end}


# === The numbered scripts ============================================================================================
CONTRACT = {
    "a01": "levels",
    "a02": "splits",
    "a03": "backbone level image_size epochs steps_per_epoch batch_size validation_images skip_missing init_from run "
    "backbone_weights max_gt_boxes time_budget label_rules sampling precision",
    "a04": "run images predictions score_threshold nms_iou max_boxes",
    "a05": "run predictions expanded hierarchy class_descriptions only_new nms_iou",
    "a06": "predictions ensemble weights fusion_iou skip_box_threshold method limit",
    "a07": "predictions boxes image_labels hierarchy class_descriptions group_of_weight metrics",
}


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_script_has_the_flags_of_the_contract_and_explains_them(script):
    module = importlib.import_module(script)
    text = command_line.command_line(module.main).format_help()
    flags = re.findall(r"^  --(\w+)", text, flags=re.MULTILINE)
    assert flags == list(inspect.signature(module.main).parameters)  # exactly main's keywords
    assert set(CONTRACT[script[:3]].split()) | {"output_path"} <= set(flags)
    assert "dataset_path" in flags
    for commands in re.findall(rf"^    python {script}\.py *(.*(?:\\\n.*)*)", module.__doc__, flags=re.MULTILINE):
        assert set(re.findall(r"--(\w+)", commands)) <= set(flags)  # the commands in the docstring are valid
