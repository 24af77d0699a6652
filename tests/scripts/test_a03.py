"""a03: what a run holds, that it goes on exactly where it was, and that a mistake is one sentence."""

import ast
import inspect
import math
import re
import shutil
from types import SimpleNamespace

import numpy as np
import pytest

import a03_train_m2det as a03
from a01_create_training_files import main as create_training_files
from models import load_model
from models.keras_internals import all_layers
from models.load import load_run
from models.run_settings import read_run_settings
from oid import paths
from oid.anchors.grids import m2det_anchors
from oid.annotations import read_class_descriptions
from oid.files import InputError
from oid.json_files import read_json
from tests.helpers.project import refused
from tests.helpers.runs import history, in_folder
from tests.helpers.small_photographs import CLASSES, TINY, make_photographs
from training.data_set import read_data_set
from training.loop import Training
from training.options import TrainingSettings
from training.validation import make_validation

FLAGS = a03.main.__kwdefaults__


def test_main_is_short_and_has_40_flags():
    assert len(FLAGS) == 40
    (function,) = ast.parse(inspect.getsource(a03.main)).body
    first, *_, last = function.body[1:]  # without the docstring
    assert last.end_lineno - first.lineno < 60


# === What a run holds ================================================================================================
def test_settings_json_describes_the_network(trained):
    settings = read_run_settings(trained.folder)
    names = read_class_descriptions(paths.level_class_descriptions(trained.output, "1"))
    assert settings.classes == tuple((label, names[label]) for label in CLASSES)
    assert (settings.level, settings.network.image_size, settings.inputs.orientation) == ("1", 96, "stored")
    assert settings.anchors == m2det_anchors(96, 2)


def test_training_json_has_every_flag(trained):
    training = read_json(trained.folder / "training.json", TrainingSettings)
    groups = [training.options, *vars(training.options).values()]
    options = {name: value for group in groups if hasattr(group, "__dict__") for name, value in vars(group).items()}
    options["label_rules"] = options["rules"]
    expected = {**FLAGS, "time_budget": 1200.0, **trained.flags}
    names = FLAGS.keys() - {"dataset_path", "output_path", "run", "show_batches"}
    assert {name: options[name] for name in names} == {name: expected[name] for name in names}
    assert (training.batch_size, training.learning_rate, training.precision) == (4, 2e-3, "float32")


def test_a_row_of_history_per_epoch(trained):
    rows = history(trained.folder)
    assert [row["epoch"] for row in rows] == ["1", "2"]
    for row in rows:
        assert float(row["loss"]) == pytest.approx(float(row["class_loss"]) + float(row["box_loss"]), abs=1e-3)
        assert 0 <= float(row["mAP"]) <= 1
        assert float(row["images_per_second"]) > 0
        assert math.isfinite(float(row["seconds"]))


def test_printed_lines(trained):
    lines = trained.printed.splitlines()
    assert lines[0] == "train: 12 images, 14 boxes, 2 ignored regions"
    assert "validation: 6 images, 8 boxes" in lines
    assert "label rules: verified, regions" in lines  # leaves have no ancestors among themselves
    chosen = [line.removeprefix("chosen: ").split(",")[0] for line in lines if line.startswith("chosen: ")]
    assert chosen == ["anchors per cell: 1", "learning rate 0.002 for adamw", "2 epochs of 3 steps"]
    scores = [float(row["mAP"]) for row in history(trained.folder)]
    epochs = [line for line in lines if re.match(r"epoch \d/\d  loss", line)]
    found = [re.search(r"epoch (\d/\d) .* mAP (\d\.\d{4})", line).groups() for line in epochs]
    assert found == [(f"{number}/2", f"{score:.4f}") for number, score in enumerate(scores, start=1)]
    assert ["best" in line for line in epochs] == [True, scores[1] > scores[0]]
    assert f"best mAP {max(scores):.4f}" in lines[-1]


def test_a_run_keeps_two_checkpoints_and_no_temporary_files(trained):
    assert [path.name for path in trained.folder.glob("checkpoint.*")] == ["checkpoint.previous"]
    assert [path.name for path in trained.folder.rglob(".*")] == [".lock"]


def test_validation_measured_what_the_saved_model_finds(trained):
    data = read_data_set(trained.data_set, trained.output, "1", "validation")
    detector = load_model(trained.folder)
    score = make_validation(data, detector.settings).measure(detector)
    assert score == pytest.approx(max(float(row["mAP"]) for row in history(trained.folder)), abs=1e-6)


def test_a_finished_run_says_so_and_changes_nothing(trained, capsys):
    def times():
        return {path: path.stat().st_mtime_ns for path in trained.folder.rglob("[!.]*")}

    before = times()
    a03.main(**trained.flags)
    last = r"trained is finished, best mAP .*: a larger --time_budget or more --epochs prolong it\n$"
    assert re.search(last, capsys.readouterr().out)
    assert times() == before


# === Going on ========================================================================================================
def test_more_epochs_prolong_a_finished_run(trained, tmp_path, capsys):
    flags, folder = in_folder(trained, tmp_path, epochs=3)
    shutil.copytree(trained.folder, folder)
    a03.main(**{name: value for name, value in flags.items() if name != "batch_size"})  # which is as it began
    assert "going on after epoch 2 of 2" in capsys.readouterr().out
    before, after = history(trained.folder), history(folder)
    assert after[:2] == before
    assert len(after) == 3
    assert read_json(folder / "training.json", TrainingSettings).options.length.epochs == 3


@pytest.mark.parametrize(
    ("change", "before"),
    [
        ({"batch_size": 2}, "4"),
        ({"learning_rate": 0.5}, "0.002"),  # which was chosen
        ({"seed": 1}, "0"),
        ({"label_rules": ("verified",)}, "verified ancestors regions"),
        ({"init_from": "trained"}, "nothing"),
    ],
)
def test_other_settings_are_refused_by_name(trained, change, before):
    ((name, value),) = change.items()
    shown = " ".join(value) if isinstance(value, tuple) else value
    with refused(f"--{name} is {shown}: give {before}, as when {trained.folder} was begun, or another --run "):
        a03.main(**{**trained.flags, **change})


def change_the_order_of_classes(folder) -> None:
    path = paths.level_class_descriptions(folder.parent.parent, "1")
    path.write_text("".join(reversed(path.read_text().splitlines(keepends=True))))


def lose_the_checkpoints(folder) -> None:
    for name in ("checkpoint", "checkpoint.previous"):
        shutil.rmtree(folder / name)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (change_the_order_of_classes, "was begun with other classes"),
        (lose_the_checkpoints, "holds a training without its checkpoint"),
    ],
)
def test_a_run_that_does_not_fit_its_checkpoint_is_refused(trained, tmp_path, damage, message):
    flags, folder = in_folder(trained, tmp_path)
    shutil.copytree(trained.folder, folder)
    damage(folder)
    with refused(message):
        a03.main(**flags)


def test_a_run_without_a_checkpoint_may_change_its_settings(trained, monkeypatch, tmp_path):
    """The first attempt ran out of memory, for example."""
    flags, folder = in_folder(trained, tmp_path, batch_size=2)
    folder.mkdir(parents=True)
    shutil.copy(trained.folder / "training.json", folder)

    def stop(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(Training, "run", stop)
    with pytest.raises(KeyboardInterrupt):
        a03.main(**flags)
    assert read_json(folder / "training.json", TrainingSettings).batch_size == 2


# === Another training: other classes, a missing file, no validation images, few ground-truth boxes ===================
@pytest.fixture(scope="module")
def other(trained, tmp_path_factory):
    """The level `all` from the weights of `trained`, without validation images, with a file missing.

    The network is left open, except what `trained` says of it.
    """
    folder = tmp_path_factory.mktemp("other")
    shutil.copytree(trained.data_set, folder / "data", ignore=shutil.ignore_patterns("validation", "t03.*"))
    create_training_files(dataset_path=str(folder / "data"), output_path=str(folder / "out"), levels=("all",))
    from_source = ("backbone", "image_size", "tums", "scales", "channels")
    flags = {name: value for name, value in TINY.items() if name not in from_source} | {"level": "all"}
    flags |= {"dataset_path": str(folder / "data"), "output_path": str(folder / "out")}
    flags |= {"max_gt_boxes": 1, "init_from": str(trained.folder), "epochs": 1, "steps_per_epoch": 0}
    return SimpleNamespace(flags=flags, folder=folder / "out" / "weights" / "m2det_level_all")


def test_a_missing_image_is_refused_before_anything_is_written(other):
    with pytest.raises(
        InputError, match=r"1 images of train .* t03: download them, or leave them out by --skip_missing"
    ):
        a03.main(**other.flags)
    assert not other.folder.exists()


def test_another_class_set_starts_from_the_weights_of_a_run_with_its_network(other, trained, capsys):
    a03.main(**other.flags, skip_missing=True)
    printed = capsys.readouterr().out
    assert "1 images without a sound file left out" in printed
    assert "validation has no image of this level: no epoch is measured, and the last one counts" in printed
    settings = read_run_settings(other.folder)  # the run's name comes from its flags
    assert {"fruit", "vegetable", "food", *CLASSES} == set(settings.labels)
    taken, anew = re.search(r"(\d+) layers taken over, (\d+) begin anew;", printed).groups()
    assert int(taken) > 20
    assert int(anew) == 0
    of_network = "backbone tiny, image_size 96, variant paper, tums 1, scales 2, channels 16, head conv"
    assert f"chosen: {of_network}, because the weights of {trained.folder} are for these" in printed.splitlines()
    assert "; classes1, classes2 taken over for the 3 classes that both runs have" in printed
    assert int(re.search(r"(\d+) boxes beyond 1 of an image were left out", printed)[1]) > 0
    (row,) = history(other.folder)
    assert row["mAP"] == ""
    assert "mAP" not in printed.split("epoch 1/1")[1]  # nothing was measured, so nothing is claimed
    assert load_model(other.folder).class_labels == settings.labels


@pytest.mark.parametrize("frozen", ["backbone", "batch_norm"])
def test_frozen_weights_stay_and_the_others_learn(trained, tmp_path, frozen):
    changes = {"init_from": str(trained.folder), "epochs": 1, "learning_rate": 0.05, "freeze": frozen}
    flags, folder = in_folder(trained, tmp_path, **changes)
    a03.main(**flags)
    (source, _), (network, _) = load_run(trained.folder), load_run(folder)
    before, after = ({w.path: np.asarray(w) for w in model.weights} for model in (source, network))
    changed = {path for path in after if not np.array_equal(after[path], before[path])}
    backbone = {layer.name for layer in all_layers(source.get_layer("tiny"))}
    should_stay = {
        path
        for path in after
        if (path.split("/")[-2] in backbone if frozen == "backbone" else "_bn/" in path) and "seed" not in path
    }
    assert len(should_stay) >= 6
    assert changed.isdisjoint(should_stay)
    assert changed >= {path for path in after if path.endswith("kernel")} - should_stay


def test_a_backbone_that_the_source_run_lacks_cannot_be_frozen(trained):
    source = {"run": "mistake", "init_from": str(trained.folder), "backbone": "vgg_small", "freeze": "backbone"}
    with refused("layers of the backbone (", "give --backbone_weights"):
        a03.main(**trained.flags | source)
    assert not (trained.output / "weights" / "mistake").exists()


@pytest.mark.parametrize("detector", ["m2det", "retinanet"])
def test_the_published_recipe_trains(trained, tmp_path, detector):
    tums = 1 if detector == "m2det" else None
    changes = {"recipe": "published", "detector": detector, "tums": tums, "epochs": 1}
    flags, folder = in_folder(trained, tmp_path, **changes)
    a03.main(**flags)
    settings = read_run_settings(folder)
    assert settings.scores == ("softmax" if detector == "m2det" else "sigmoid")
    assert math.isfinite(float(history(folder)[0]["loss"]))
    assert load_model(folder).class_labels == list(CLASSES)


# === Mistakes ========================================================================================================
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"level": "9"}, "run a01_create_training_files.py with --levels 9"),
        ({"backbone": "resnet51"}, "resnet50"),
        ({"output_path": "/nowhere"}, "run a01_create_training_files.py"),
        ({"dataset_path": "/nowhere"}, "/nowhere/"),
        ({"scales": 9}, "9 scales do not fit 96 pixels: take at least"),
        ({"channels": 10}, "SFAM divides them by 16"),
        ({"backbone_weights": "nothing.h5"}, "nothing.h5"),
        ({"init_from": "nothing"}, "nothing is not a run: it has no settings.json: name another run by --init_from"),
    ],
)
def test_mistakes_are_one_sentence_and_leave_nothing_behind(trained, change, message):
    with refused(message):
        a03.main(**{**trained.flags, "run": "mistake", **change})
    assert not (trained.output / "weights" / "mistake").exists()


LEARNED = "--backbone_weights or --init_from as well: random weights would be kept"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"image_size": 8}, "--image_size is 8: give a number of at least 32"),
        ({"epochs": 0}, "--epochs is 0: give a number of at least 1"),
        ({"mosaic": math.nan}, "--mosaic is nan: give a number from 0 to 1"),
        ({"negatives": 1.1}, "--negatives is 1.1: give a number from 0 to 1"),
        ({"learning_rate": 0.0}, "--learning_rate is 0.0: give a number above 0"),
        ({"max_hours": math.inf}, "--max_hours is inf: give a number above 0"),
        ({"seed": 2**32}, "--seed is 4294967296: give a number from 0 to 4294967295"),
        ({"show_batches": -1}, "--show_batches is -1: give a number of at least 0"),
        ({"time_budget": "20min"}, "--time_budget is 20min: give 90s, 20m, 1h30m, 2d, or none"),
        ({"time_budget": "0m"}, "--time_budget is 0m: give 90s, 20m, 1h30m, 2d, or none"),
        ({"steps_per_epoch": 9}, "--steps_per_epoch is 9: give --epochs as well, or a --time_budget instead"),
        (
            {"label_rules": ("none", "verified")},
            "--label_rules is none verified: give some of verified, ancestors, regions, depictions, or none",
        ),
        ({"detector": "retinanet", "tums": 2}, "--tums is 2: give --detector m2det as well, or leave it out"),
        ({"freeze": "batch_norm"}, f"--freeze is batch_norm: give {LEARNED}"),
    ],
    ids=str,
)
def test_flags_out_of_range_or_against_each_other_are_refused(flags, message, tmp_path):
    with pytest.raises(InputError) as error:
        a03.main(**flags, output_path=str(tmp_path))
    assert str(error.value) == message


def test_tensorboard_is_looked_for_before_anything_starts(monkeypatch, tmp_path):
    monkeypatch.setattr(a03.importlib.util, "find_spec", lambda name: None)
    with refused("--tensorboard needs a package: pip install tensorboard, or leave it out"):
        a03.main(tensorboard=True, output_path=str(tmp_path))


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
