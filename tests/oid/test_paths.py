"""Proves that hidden and unfinished files are found by nobody, and which runs count as finished."""

import json
from pathlib import Path

import pytest

from oid import paths
from oid.files import InputError


def test_the_hidden_file_of_a_running_a05_is_not_one_of_the_predictions(tmp_path):
    folder = tmp_path / "predictions" / "test"
    folder.mkdir(parents=True)
    for name in ("b.expanded.csv", "a.expanded.csv", ".123.c.expanded.csv", "a.csv"):
        (folder / name).write_text("")
    assert paths.all_expanded_predictions(tmp_path, "test") == [folder / "a.expanded.csv", folder / "b.expanded.csv"]
    assert paths.all_expanded_predictions(tmp_path, "validation") == []


def make_run(output, name: str, **checkpoints: dict | str) -> None:
    """Makes a run with a best model, settings and checkpoints, `previous` for example being `checkpoint.previous`."""
    run = output / "weights" / name
    run.mkdir(parents=True)
    (run / "model.keras").write_text("")
    (run / "settings.json").write_text("{}")
    for which, state in checkpoints.items():
        folder = run / ("checkpoint" if which == "newest" else f"checkpoint.{which}")
        folder.mkdir()
        (folder / "state.json").write_text(state if isinstance(state, str) else json.dumps(state))


def test_runs_are_finished_after_their_last_epoch(tmp_path):
    half, whole = ({"state": {"epochs": epochs, "plan": {"epochs": 4}}} for epochs in (2, 4))
    make_run(tmp_path, "trained", newest=whole, previous=half)
    make_run(tmp_path, "shortened", newest={"state": {"epochs": 3, "plan": {"epochs": 2}}}, previous=half)
    make_run(tmp_path, "planned", newest={"state": {"epochs": 0, "plan": None}})
    make_run(tmp_path, "converted")
    make_run(tmp_path, "training", newest=half)
    make_run(tmp_path, "between_two_checkpoints", previous=half)
    make_run(tmp_path, "damaged", newest="{")
    make_run(tmp_path, ".123.converting.new")
    (tmp_path / "weights" / "just_begun").mkdir()
    assert paths.finished_runs(tmp_path) == ["converted", "shortened", "trained"]
    with pytest.raises(InputError, match=r"nowhere.weights has no run that has finished its training"):
        paths.finished_runs(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("run", "name"),
    [
        ("m2det", "m2det"),
        ("OUTPUT/weights/v1.2", "v1.2"),
        ("m2det/checkpoint", "m2det_checkpoint"),
        ("downloads/resnet50_coco_best_v2.1.0.h5", "resnet50_coco_best_v2.1.0"),
    ],
)
def test_predictions_and_exports_are_named_after_the_run(run, name):
    assert paths.run_predictions("out", "test", run) == Path("out/predictions/test") / f"{name}.csv"
    assert paths.run_export("out", run, "onnx") == Path("out/exports") / f"{name}.onnx"
    assert paths.run_export("out", run, "tf_saved_model") == Path("out/exports") / name
