"""a03: what a run holds, that it goes on exactly where it was, and that a mistake is one sentence."""

import json
import math
import os
import re
import shutil
import signal
from types import SimpleNamespace

import keras
import numpy as np
import pytest

import a03_train_m2det as a03
from a01_create_training_files import main as create_training_files
from models import load_model
from oid import paths
from oid.anchors.grids import anchor_settings
from oid.annotations import read_class_descriptions
from oid.files import InputError
from tests.helpers.project import refused
from tests.helpers.runs import assert_same_training, history, in_folder, tensors
from tests.helpers.small_photographs import CLASSES, TINY, make_photographs
from training import batches, parts, trainer
from training.data_set import read_data_set
from training.sampling import image_weights


# === What a run holds ================================================================================================
def test_settings_json_describes_the_network_and_every_flag(trained):
    settings = json.loads((trained.folder / "settings.json").read_text())
    names = read_class_descriptions(paths.level_class_descriptions(trained.output, "1"))
    assert settings["classes"] == [{"label": label, "name": names[label]} for label in CLASSES]
    assert (settings["level"], settings["image_size"]) == ("1", 96)
    assert settings["anchors"] == anchor_settings(96, 2)
    assert settings["preprocessing"]["orientation"] == "stored"
    assert settings["flags"].keys() == a03.main.__kwdefaults__.keys()
    assert {name: settings["flags"][name] for name in trained.flags} == trained.flags
    assert settings["flags"]["seed"] == 0


def test_a_row_of_history_per_epoch(trained):
    rows = history(trained.folder)
    assert [row["epoch"] for row in rows] == ["1", "2"]
    for row in rows:
        assert math.isfinite(float(row["loss"]))
        assert float(row["loss"]) == pytest.approx(float(row["class_loss"]) + float(row["box_loss"]), abs=1e-3)
        assert 0 <= float(row["mAP"]) <= 1
        assert float(row["images_per_second"]) > 0
        assert float(row["seconds"]) > 0


def test_printed_lines(trained):
    lines = trained.printed.splitlines()
    assert lines[0] == "train: 12 images, 14 boxes, 2 ignored regions"
    assert "validation: 6 images, 8 boxes" in lines
    assert "label rules: verified, regions" in lines  # leaves have no ancestors among themselves
    assert "no class of this level lies above another in the hierarchy: there are no ancestors to spare" in lines
    chosen = [line.removeprefix("chosen: ").split(",")[0] for line in lines if line.startswith("chosen: ")]
    rates = ["learning rate 0.002 for adamw", "weight decay 0.03"]  # nothing else is open in TINY
    assert chosen == [*rates, "1 anchor per cell", "12 images: cache on"]
    scores = [float(row["mAP"]) for row in history(trained.folder)]
    epochs = [line for line in lines if line.startswith("epoch ")]
    found = [re.search(r"epoch (\d/\d) .* mAP (\d\.\d{4})", line).groups() for line in epochs]
    assert found == [(f"{number}/2", f"{score:.4f}") for number, score in enumerate(scores, start=1)]
    assert ["best" in line for line in epochs] == [True, scores[1] > scores[0]]
    assert lines[-1].endswith(f"best mAP {max(scores):.4f}")


def test_a_run_keeps_two_checkpoints_and_no_temporary_files(trained):
    assert [path.name for path in trained.folder.glob("checkpoint.*")] == ["checkpoint.previous"]
    assert not list(trained.folder.rglob(".*"))


def test_validation_measured_what_the_saved_model_finds(trained):
    from training.validation import make_validation

    data = read_data_set(trained.data_set, trained.output, "1", "validation")
    detector = load_model(trained.folder)
    score = make_validation(data, detector.settings, orientation="stored")(detector)
    assert score == pytest.approx(max(float(row["mAP"]) for row in history(trained.folder)), abs=1e-6)


def test_a_finished_run_says_so_and_changes_nothing(trained, capsys):
    before = {path: path.stat().st_mtime_ns for path in trained.folder.rglob("*")}
    a03.main(**trained.flags)
    assert "is finished: 2 of 2 epochs, best mAP " in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in trained.folder.rglob("*")} == before


@pytest.mark.parametrize("change", [{"batch_size": 2}, {"epochs": 3}, {"learning_rate": 0.5}, {"seed": 1}])
def test_other_settings_are_refused_by_name(trained, change):
    ((name, value),) = change.items()
    before = json.loads((trained.folder / "settings.json").read_text())["flags"][name]
    with refused(f"--{name} {before}, now it is {value}"):
        a03.main(**{**trained.flags, **change})


def change_channels(folder) -> None:
    settings = json.loads((folder / "settings.json").read_text())
    (folder / "settings.json").write_text(json.dumps(settings | {"channels": 32}))


def change_the_order_of_classes(folder) -> None:
    path = paths.level_class_descriptions(folder.parent.parent, "1")
    path.write_text("".join(reversed(path.read_text().splitlines(keepends=True))))


def lose_the_checkpoints(folder) -> None:
    for name in ("checkpoint", "checkpoint.previous"):
        shutil.rmtree(folder / name)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (change_channels, "settings.json: channels is not that of the checkpoint beside it, 16: restore"),
        (change_the_order_of_classes, "other classes"),
        (lose_the_checkpoints, "lacks its checkpoint"),
    ],
)
def test_a_run_that_does_not_fit_its_checkpoint_is_refused(trained, tmp_path, damage, message):
    flags, folder = in_folder(trained, tmp_path)
    shutil.copytree(trained.folder, folder)
    damage(folder)
    with refused(message):
        a03.main(**flags)


# === Stopping and going on ===========================================================================================
def poisoned(monkeypatch, step: int):
    """Makes the loss of one step not a number."""
    mark, pure, losses = 77.0, batches.Batches.batch, trainer.detection_losses

    def batch(self, asked, image_size=None):
        images, targets = pure(self, asked, image_size)
        if asked == step:
            targets["regions"][0, -1] = mark  # padding
        return images, targets

    def detection_losses(outputs, targets, *others, **options):
        bad = keras.ops.any(targets["regions"] == mark)
        class_sum, *rest = losses(outputs, targets, *others, **options)
        return keras.ops.where(bad, math.nan, class_sum), *rest

    monkeypatch.setattr(batches.Batches, "batch", batch)
    monkeypatch.setattr(trainer, "detection_losses", detection_losses)


def test_a_loss_that_is_not_finite_stops_and_the_run_then_goes_on_exactly(trained, monkeypatch, capsys):
    flags = {**trained.flags, "run": "stopped"}
    folder = trained.output / "weights" / "stopped"
    data = read_data_set(trained.data_set, trained.output, "1", "train")
    order = {"weights": image_weights(data), "close_at": int(0.85 * 6)}
    expected = batches.Batches(data, image_size=96, batch_size=4, mosaic=0.5, **order).ids(4)
    good = f"the last good checkpoint, {folder / 'checkpoint'} of step 3"
    with monkeypatch.context() as patch, refused("the loss of step 4 is nan", " ".join(expected), good):
        poisoned(patch, step=4)
        a03.main(**flags)
    report = json.loads((folder / "bad_batch.json").read_text())
    assert (report["step"], report["images"]) == (4, expected)
    assert str(folder / "checkpoint") in report["last_good_checkpoint"]
    assert len(history(folder)) == 1  # the epoch before is safe
    assert all(np.all(np.isfinite(value)) for value in tensors(folder / "checkpoint/training.npz").values())

    with monkeypatch.context() as patch:
        patch.setattr(parts, "training_data", lambda flags: os.kill(os.getpid(), signal.SIGTERM))
        a03.main(**flags)
    assert capsys.readouterr().out.splitlines()[-1] == (
        f"{folder}: stopped by SIGTERM before its next step: run the same command to go on"
    )
    a03.main(**flags)
    assert "going on after epoch 1 of 2" in capsys.readouterr().out
    assert_same_training(folder, trained.folder)
    arrays, weights = (tensors(folder / "checkpoint" / name) for name in ("training.npz", "network.weights.h5"))
    assert len(arrays) > 2 * len(weights)  # averages and the optimizer's moments, too
    picture = np.random.default_rng(0).integers(0, 256, (1, 96, 96, 3)).astype("uint8")
    one, two = (load_model(run).predict_on_batch(picture) for run in (trained.folder, folder))
    np.testing.assert_allclose(one["scores"], two["scores"], atol=1e-5)


def test_a_run_without_a_checkpoint_may_change_its_settings(trained, monkeypatch, tmp_path):
    """The first attempt ran out of memory, for example, and left settings.json only."""
    flags, folder = in_folder(trained, tmp_path, batch_size=2)
    folder.mkdir(parents=True)
    shutil.copy(trained.folder / "settings.json", folder)

    def stop(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(trainer.DetectionTrainer, "fit", stop)
    with pytest.raises(KeyboardInterrupt):
        a03.main(**flags)
    assert json.loads((folder / "settings.json").read_text())["flags"]["batch_size"] == 2


def test_no_memory_for_a_step_is_one_sentence(trained, monkeypatch):
    def fit(*arguments, **options):
        raise type("ResourceExhaustedError", (Exception,), {})("OOM when allocating tensor")

    monkeypatch.setattr(trainer.DetectionTrainer, "fit", fit)
    with refused("the memory does not suffice for a step of 4 images of 96 pixels: give "):
        a03.main(**trained.flags | {"run": "full"})
    assert not (trained.output / "weights" / "full" / "checkpoint").exists()


# === Another training: other classes, a missing file, no validation images, few ground-truth boxes ===================
@pytest.fixture(scope="module")
def other(trained, tmp_path_factory):
    """The level `all` from the weights of `trained`, without validation images, with a file missing, two threads.

    The network is left open, except what `trained` says of it.
    """
    folder = tmp_path_factory.mktemp("other")
    shutil.copytree(trained.data_set, folder / "data", ignore=shutil.ignore_patterns("validation", "t03.*"))
    create_training_files(dataset_path=str(folder / "data"), output_path=str(folder / "out"), levels=("all",))
    from_source = ("backbone", "image_size", "tums", "scales", "channels")
    flags = {name: value for name, value in TINY.items() if name not in from_source} | {"level": "all"}
    flags |= {"dataset_path": str(folder / "data"), "output_path": str(folder / "out")}
    flags |= {"max_gt_boxes": 1, "workers": 2, "init_from": str(trained.folder), "epochs": 1, "steps_per_epoch": 0}
    return SimpleNamespace(flags=flags, folder=folder / "out" / "weights" / "m2det_level_all")


def test_a_missing_image_is_refused_before_anything_is_written(other):
    with pytest.raises(InputError, match=r"1 of 12 images .* t03: download them, or train without them by --skip_"):
        a03.main(**other.flags)
    assert not other.folder.exists()


def test_another_class_set_starts_from_the_weights_of_a_run_with_its_network(other, trained, capsys):
    a03.main(**other.flags, skip_missing=True)
    printed = capsys.readouterr().out
    assert "train: 1 images have no file, or a damaged one, and are left out" in printed
    assert "validation does not exist: nothing is measured, the last epoch counts" in printed
    settings = json.loads((other.folder / "settings.json").read_text())  # the run's name comes from its flags
    assert {"fruit", "vegetable", "food", *CLASSES} == {entry["label"] for entry in settings["classes"]}
    taken, anew = re.search(r"(\d+) layers taken over, (\d+) begin anew$", printed, flags=re.MULTILINE).groups()
    assert int(taken) > 20
    assert int(anew) == 0
    of_network = "variant paper, tums 1, scales 2, channels 16, sfam True, head conv, anchors square"
    why = f"because the weights of {trained.folder} are for these"
    assert f"chosen: backbone tiny, image_size 96, {of_network}, {why}" in printed.splitlines()
    assert "it knows 3 of the 6 classes, whose part of the classifier (classes1, classes2) is taken over" in printed
    assert int(re.search(r"(\d+) boxes beyond --max_gt_boxes 1 of a picture", printed)[1]) > 0
    (row,) = history(other.folder)
    assert row["mAP"] == ""
    assert "mAP" not in printed.split("epoch 1/1")[1]  # nothing was measured, so nothing is claimed
    assert load_model(other.folder).class_labels == [entry["label"] for entry in settings["classes"]]


def weights_of(run) -> dict[str, np.ndarray]:
    """All weights of a run's best model, by path."""
    return {weight.path: np.asarray(weight) for weight in load_model(run).model.weights}


@pytest.mark.parametrize("frozen", ["backbone", "batch_norm"])
def test_frozen_weights_stay_and_the_others_learn(trained, tmp_path, frozen):
    changes = {"init_from": str(trained.folder), "epochs": 1, "learning_rate": 0.05, f"freeze_{frozen}": True}
    flags, folder = in_folder(trained, tmp_path, **changes)
    a03.main(**flags)
    before, after = weights_of(trained.folder), weights_of(folder)
    changed = {path for path in after if not np.array_equal(after[path], before[path])}
    backbone = {layer.name for layer in load_model(trained.folder).model.get_layer("tiny").get_layer("backbone").layers}
    should_stay = {
        path
        for path in after
        if (path.split("/")[-2] in backbone if frozen == "backbone" else "_bn/" in path) and "seed" not in path
    }
    assert len(should_stay) >= 6
    assert changed.isdisjoint(should_stay)
    assert changed >= {path for path in after if path.endswith("kernel")} - should_stay


@pytest.mark.parametrize("frozen", ["freeze_backbone", "freeze_backbone_epochs"])
def test_a_backbone_that_the_source_run_lacks_cannot_be_frozen(trained, frozen):
    flags = trained.flags | {"run": "mistake", "init_from": str(trained.folder), "backbone": "vgg_small", frozen: 1}
    remedy = "with its tiny: give --backbone_weights as well, or its backbone"
    with refused(f"--{frozen} would keep random weights: ", " layers of vgg_small (", f"{trained.folder}, {remedy}"):
        a03.main(**flags)
    assert not (trained.output / "weights" / "mistake").exists()


# === Mistakes ========================================================================================================
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"level": "9"}, "run a01_create_training_files.py with --levels 9"),
        ({"backbone": "resnet51"}, "resnet50"),
        ({"output_path": "/nowhere"}, "run a01_create_training_files.py"),
        ({"dataset_path": "/nowhere"}, "/nowhere/train does not exist"),
        ({"epochs": 0}, "--epochs is 0: it must be at least 1"),
        ({"image_size": 8}, "--image_size is 8"),
        ({"scales": 9}, "9 scales do not fit 96 pixels: take at least"),
        ({"channels": 10}, "SFAM divides them by 16"),
        ({"freeze_backbone": True}, "--freeze_backbone would keep random weights: give --backbone_weights or"),
        ({"backbone_weights": "nothing.h5"}, "nothing.h5"),
    ],
)
def test_mistakes_are_one_sentence_and_leave_nothing_behind(trained, change, message):
    with refused(message):
        a03.main(**{**trained.flags, "run": "mistake", **change})
    assert not (trained.output / "weights" / "mistake").exists()


# === It learns =======================================================================================================
def test_a_handful_of_pictures_is_learned_by_heart(tiny_backbone, tmp_path):
    """Eleven pictures of three classes, measured on the pictures that it trains on; 1.0 with each of three seeds."""
    data_set, output = make_photographs(tmp_path, train=10, validation=1, odd=False)
    shutil.rmtree(data_set / "validation")
    shutil.copytree(data_set / "train", data_set / "validation")
    for path in (output / "level_1_files").glob("train-*"):
        shutil.copy(path, path.with_name(path.name.replace("train-", "validation-")))
    flags = TINY | {"epochs": 2, "steps_per_epoch": 200, "learning_rate": 5e-3, "mosaic": 0.0}
    a03.main(dataset_path=str(data_set), output_path=str(output), run="by_heart", **flags)
    assert max(float(row["mAP"]) for row in history(output / "weights" / "by_heart")) >= 0.9
