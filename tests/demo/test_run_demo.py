"""The demonstration's runner: its commands are valid, it skips what is there, a failure ends it with its exit code."""

import importlib
import json
import os
import sys
from pathlib import Path

import pytest

from demo import run_demo
from oid.command_line import command_line
from tests.helpers.project import run_script

TRAINING = {"level": "1", "image_size": 96, "steps_per_epoch": 2, "backbone_weights": "none", "seed": 0}


def test_every_command_has_flags_that_its_script_knows(tmp_path):
    modules = []
    networks = ("one", "two")
    for step in run_demo.pipeline(tmp_path, networks, TRAINING):
        name, *flags = step.command[2 if step.command[1] == "-m" else 1 :]
        name = name.removesuffix(".py")
        values = vars(command_line(importlib.import_module(name).main).parse_args(flags))
        assert values.keys() >= {flag.removeprefix("--") for flag in flags if flag.startswith("--")}
        modules.append(name.removeprefix("demo.")[:3])
    numbered = [name for name in modules if name.startswith("a0")]
    assert numbered == ["a01", "a02", *["a03", "a04", "a05", "a07"] * 2, "a06", "a07"]


def test_a_step_is_done_when_nothing_it_reads_is_newer(tmp_path):
    source, target = tmp_path / "source", tmp_path / "target"
    step = run_demo.Step(["x"], [source], [target])
    source.write_text("")
    assert not step.is_done()
    target.write_text("")
    os.utime(source, (1000, 1000))
    os.utime(target, (1000, 1000))
    assert step.is_done()
    os.utime(source, (1001, 1001))
    assert not step.is_done()
    source.unlink()
    assert not step.is_done()
    assert not run_demo.Step(["x"]).is_done()


def test_skips_say_so_and_do_not_run(tmp_path, capsys):
    (tmp_path / "there").write_text("")
    run_demo.run(run_demo.Step([sys.executable, "-c", "raise SystemExit(1)"], (), [tmp_path / "there"]))
    assert "skipped: there already there" in capsys.readouterr().out


@pytest.mark.parametrize(("code", "expected"), [(2, 2), (1, 1), (130, 130)])
def test_a_failing_step_ends_the_demonstration(code, expected, capsys):
    command = [sys.executable, "-c", f"raise SystemExit({code})"]
    with pytest.raises(SystemExit) as stop:
        run_demo.run(run_demo.Step(command))
    assert stop.value.code == expected
    captured = capsys.readouterr()
    assert "SystemExit" in captured.out  # the command was printed
    assert f"exit code {code}" in captured.err


def test_results_come_from_the_files_of_a03_and_a07(tmp_path):
    for name, score in (("one", 0.5), ("two", 0.625)):
        folder = tmp_path / "output/weights" / name
        folder.mkdir(parents=True)
        (folder / "settings.json").write_text("{}")
        (folder / "history.csv").write_text("epoch,images_per_second,seconds,mAP\n1,10,60,0.1\n2,30,30,\n3,20,30,0.5\n")
        metrics = tmp_path / f"output/predictions/validation/{name}.expanded.metrics.json"
        metrics.parent.mkdir(parents=True, exist_ok=True)
        metrics.write_text(json.dumps({"mAP": score}))
    (metrics.parent / "submission.metrics.json").write_text(json.dumps({"mAP": 0.75}))
    rows = run_demo.results(tmp_path, ("one", "two"))
    expected = [("one", "20.0", "2.0", "0.5000"), ("two", "20.0", "2.0", "0.6250"), ("ensemble", "", "", "0.7500")]
    assert rows == expected


def test_two_backbones_are_needed():
    done = run_script("demo.run_demo", "--backbones", "vgg16")
    assert done.returncode == 2
    assert done.stderr == "error: --backbones is vgg16: give two or more different ones\n"


@pytest.mark.slow
def test_the_whole_demonstration_runs_and_resumes(tmp_path):
    flags = ["--demo_path", tmp_path / "demo", "--image_size", 96, "--epochs", 1, "--steps_per_epoch", 2]
    first = run_script("demo.run_demo", *flags, timeout=900)
    assert first.returncode == 0, first.stderr
    assert "mAP@0.5" in first.stdout
    assert (tmp_path / "demo/page.html").stat().st_size > 100_000
    second = run_script("demo.run_demo", *flags)
    assert second.returncode == 0, second.stderr
    assert second.stdout.count("skipped: ") >= 10
    assert second.stdout.count("is finished") == 2
    assert Path(tmp_path / "demo/results.csv").read_text().count("\n") == 4
