"""What a training does with images that cannot be read and with weights that are not finite."""

import dataclasses
import json
import shutil
import threading
from types import SimpleNamespace

import keras
import numpy as np
import pytest
from training.callbacks import FiniteLossGuard, NonFiniteLoss, Saver

import a03_train_m2det as a03
from oid.files import InputError
from tests.helpers.project import refused
from tests.helpers.runs import assert_same_batch, history, in_folder
from training import checkpoints
from training.batches import BadImages, Batches, check_images
from training.data_set import read_data_set
from training.validation import make_validation

STEPS = range(8)


def copied(data, folder):
    """The data set with copies of its files, which a test may damage."""
    files = [folder / path.name for path in data.paths]
    for path, mine in zip(data.paths, files, strict=True):
        shutil.copy(path, mine)
    return dataclasses.replace(data, paths=files)


@pytest.fixture
def data(photographs, tmp_path):
    return copied(read_data_set(*photographs, "1", "train"), tmp_path)


def make(data, **options) -> Batches:
    return Batches(data, image_size=64, batch_size=4, mosaic=0.5, mixup=0.3, close_at=6, seed=3, **options)


# === Images that cannot be read ======================================================================================
def test_a_bad_image_is_replaced_the_same_way_in_any_order_and_said_once(data, capsys):
    sound = make(data)
    whole = {step: (sound.batch(step), sound.ids(step)) for step in STEPS}
    data.paths[2].write_bytes(data.paths[2].read_bytes()[:200])
    data.paths[5].unlink()
    bad = {data.image_ids[2], data.image_ids[5]}
    first, second, uncached = (make(data, max_bad_images=2, **kind) for kind in ({}, {}, {"cache_bytes": 0}))
    met = {step: first.batch(step) for step in STEPS}
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == 2
    assert {line.split("/")[-1].split(".")[0] for line in printed} == bad
    assert printed[0].endswith("; another image stands in for it (1 of at most 2)")
    assert printed[1].endswith("(2 of at most 2)")
    assert set(first.bad_images) == bad
    for step in reversed(STEPS):
        assert_same_batch(second.batch(step), met[step])
        assert_same_batch(uncached.batch(step), met[step])
        assert second.ids(step) == uncached.ids(step)
        assert not bad & set(second.ids(step))
        touched = bad & set(whole[step][1])
        assert (second.ids(step) != whole[step][1]) == bool(touched)
        if not touched:  # the others see what they would have seen
            assert_same_batch(met[step], whole[step][0])
    assert any(bad & set(ids) for _, ids in whole.values())
    first.print_left_out(STEPS)
    sentence = "2 images could not be read and were replaced by others: "
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith(sentence)]
    assert set(line.removeprefix(sentence).split(", ")) == bad


def test_stand_ins_follow_the_sampling(data):
    weights = np.ones(len(data))
    weights[0], weights[1] = 0.0, 2.0
    data.paths[4].unlink()
    batches = make(data, max_bad_images=3, weights=weights)
    for step in range(40):
        batches.batch(step)
    seen = {image_id for step in range(40) for image_id in batches.ids(step)}
    assert seen == {image_id for number, image_id in enumerate(data.image_ids) if number not in (0, 4)}


@pytest.mark.parametrize("limit", [0, 1, 2])
def test_more_than_allowed_stop_the_training_in_one_sentence(data, limit):
    for number in (1, 4, 7):
        data.paths[number].unlink()
    batches = make(data, max_bad_images=limit)
    sentence = f"{limit + 1} of {len(data)} training images cannot be read, and --max_bad_images is {limit}; the "
    with refused("No such file", sentence if limit else ""):
        [batches.batch(step) for step in range(20)]


def test_images_that_are_all_bad_end_it(data):
    for path in data.paths:
        path.unlink()
    with pytest.raises(BadImages, match=f"{len(data)} of {len(data)} training images cannot be read"):
        make(data, max_bad_images=1000).batch(0)


def test_an_unreadable_first_image_is_refused_at_once(data):
    check_images(data, "stored")
    with refused("no training image"):
        check_images(dataclasses.replace(data, image_ids=[], paths=[]), "stored")
    data.paths[0].write_bytes(data.paths[0].read_bytes()[:200])
    with refused(data.paths[0].name):
        check_images(data, "stored")
    check_images(data, "stored", max_bad_images=1)
    data.paths[1].unlink()
    with refused(data.paths[0].name):
        check_images(data, "stored", max_bad_images=1)


# === Validation images that cannot be read ===========================================================================
class Finds:
    """A detector that finds the same box of the same class in each picture."""

    def detect(self, squares, **options):
        box = np.array([[0.1, 0.1, 0.6, 0.9]])
        return [(box, np.array([0.5]), np.array([0], "int64"))] * len(squares)


def test_a_bad_validation_image_is_said_once_and_not_measured(photographs, tmp_path, capsys):
    data = copied(read_data_set(*photographs, "1", "validation"), tmp_path)
    settings = {"image_size": 64, "preprocessing": {"resize": "warp"}, "classes": [0, 1, 2]}

    def measure(measured, limit=0):
        validate = make_validation(measured, settings, orientation="stored", max_bad_images=limit)
        return [validate(Finds()) for _ in range(2)]

    sound = measure(data)
    data.paths[0].unlink()  # of the class that is found
    first, again = measure(data, limit=1)
    (line,) = capsys.readouterr().out.splitlines()
    assert data.paths[0].name in line
    assert line.endswith("; it is not measured (1 of at most 1)")
    assert first == again != sound[0]
    shutil.copytree(photographs[0], tmp_path / "data")
    (tmp_path / "data" / "validation" / data.paths[0].name).unlink()
    without = read_data_set(tmp_path / "data", photographs[1], "1", "validation", skip_missing=True)
    assert len(without) == len(data) - 1
    assert measure(without)[0] == first
    data.paths[2].unlink()
    with refused(data.paths[2].name):
        measure(data, limit=1)


# === In a training ===================================================================================================
@pytest.fixture
def flags(trained, tmp_path):
    """Those of `trained`, with a data set and a folder that a test may change."""
    data_set = shutil.copytree(trained.data_set, tmp_path / "data")
    changes = {"dataset_path": str(data_set), "run": "run", "epochs": 1, "image_size": 64, "scales": 1}
    return in_folder(trained, tmp_path / "out", **changes)[0]


def test_too_many_bad_images_end_a_training_that_goes_on_when_they_are_mended(flags, tmp_path, monkeypatch, capsys):
    """The images vanish after its second step; what was learned is saved, and nothing of a third step."""
    folder, images, away = tmp_path / "out" / "weights" / "run", tmp_path / "data" / "train", tmp_path / "away"
    batch, counted, gone = Batches.batch, Saver.on_train_batch_end, threading.Event()

    def waiting(self, step, image_size=None):
        assert step < 2 or gone.wait(60)  # batches are prepared ahead
        return batch(self, step, image_size)

    def counting(self, index, logs=None):
        counted(self, index, logs)
        if self.state["step"] == 2:
            images.rename(away)
            gone.set()

    flags |= {"steps_per_epoch": 6, "cache_gb": 0.0, "max_bad_images": 1, "mosaic": 0.0}
    monkeypatch.setattr("training.pictures.RECENT_PICTURES", 0)
    monkeypatch.setattr(Batches, "batch", waiting)
    monkeypatch.setattr(Saver, "on_train_batch_end", counting)
    with pytest.raises(InputError, match=r"2 of 12 training images cannot be read, and --max_bad_images is 1"):
        a03.main(**flags)
    saved, state, _ = checkpoints.find_checkpoint(folder)
    assert state["step"] == 2
    with np.load(saved / checkpoints.TRAINING) as arrays:
        assert [int(array) for array in arrays.values() if array.ndim == 0 and array.dtype.kind == "i"] == [2]
    away.rename(images)
    capsys.readouterr()
    a03.main(**flags)
    assert "going on after epoch 0 of 1 and 2 of 6 steps" in capsys.readouterr().out
    assert [row["epoch"] for row in history(folder)] == ["1"]


def test_weights_that_an_update_spoiled_are_never_saved(data, tmp_path):
    batches = make(data)
    guard = FiniteLossGuard(tmp_path, batches, {"step": 5})
    weight = keras.Variable(np.array([1.0, np.inf], "float32"), name="kernel")
    trainer = SimpleNamespace(trainable_variables=[weight])
    with pytest.raises(NonFiniteLoss, match="step 4 made kernel infinite or not a number: look at its") as error:
        guard.check_weights(trainer)
    assert "nothing: there is no checkpoint yet" in str(error.value)
    assert json.loads((tmp_path / "bad_batch.json").read_text())["images"] == batches.ids(4)
    weight.assign(np.array([1.0, 2.0]))
    guard.check_weights(trainer)


def test_a_start_from_a_run_that_does_not_exist_is_refused_before_anything_is_built(flags, monkeypatch):
    for name in ("network_from_settings", "read_data_set"):
        monkeypatch.setattr(f"training.parts.{name}", None)
    with refused("--init_from nothing: ", "is no run: it has no settings.json; name another"):
        a03.main(**flags, init_from="nothing")
