"""What a training does with images that cannot be read and with weights that are not finite."""

import dataclasses
import json
import shutil
import threading

import keras
import numpy as np
import pytest

import a03_train_m2det as a03
from oid.files import InputError
from tests.helpers.runs import assert_same_batch, copy_level, history
from training import checkpoints
from training.batches import BadImages, Batches, check_images
from training.callbacks import Saver
from training.data_set import read_data_set
from training.validation import make_validation

STEPS = range(8)


@pytest.fixture
def data(photographs, tmp_path):
    """The training images, in files that a test may damage."""
    data_set, output = photographs
    found = read_data_set(data_set, output, "1", "train")
    paths = [tmp_path / path.name for path in found.paths]
    for path, mine in zip(found.paths, paths, strict=True):
        shutil.copy(path, mine)
    return dataclasses.replace(found, paths=paths)


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


def test_stand_ins_follow_the_sampling(data):
    weights = np.ones(len(data))
    weights[0], weights[1] = 0.0, 2.0
    data.paths[4].unlink()
    batches = make(data, max_bad_images=3, weights=weights)
    seen = set()
    for step in range(40):
        batches.batch(step)
        seen |= set(batches.ids(step))
    assert seen == {image_id for number, image_id in enumerate(data.image_ids) if number not in (0, 4)}


@pytest.mark.parametrize("limit", [0, 1, 2])
def test_more_than_allowed_stop_the_training_in_one_sentence(data, limit):
    for number in (1, 4, 7):
        data.paths[number].unlink()
    batches = make(data, max_bad_images=limit)
    with pytest.raises(BadImages) as error:
        [batches.batch(step) for step in range(20)]
    assert "\n" not in str(error.value)
    assert "No such file" in str(error.value)
    if limit:
        sentence = f"{limit + 1} of {len(data)} training images cannot be read, and --max_bad_images is {limit}; the "
        assert str(error.value).startswith(sentence)


def test_images_that_are_all_bad_end_it(data):
    for path in data.paths:
        path.unlink()
    with pytest.raises(BadImages, match=f"{len(data)} of {len(data)} training images cannot be read"):
        make(data, max_bad_images=1000).batch(0)


def test_replaced_images_are_counted_at_the_end(data, capsys):
    data.paths[3].unlink()
    batches = make(data, max_bad_images=1)
    for step in range(4):
        batches.batch(step)
    capsys.readouterr()
    batches.print_left_out(range(4))
    assert f"1 images could not be read and were replaced by others: {data.image_ids[3]}" in capsys.readouterr().out


def test_an_unreadable_first_image_is_refused_at_once(data):
    data.paths[0].unlink()
    with pytest.raises(InputError, match="No such file"):
        check_images(data, "stored")
    check_images(data, "stored", max_bad_images=1)
    data.paths[1].unlink()
    with pytest.raises(InputError, match=data.paths[0].name):
        check_images(data, "stored", max_bad_images=1)


# === Validation images that cannot be read ===========================================================================
class Finds:
    """A detector that finds the same box of the same class in each picture."""

    def detect(self, squares, **options):
        box = np.array([[0.1, 0.1, 0.6, 0.9]])
        return [(box, np.array([0.5]), np.array([0], "int64"))] * len(squares)


def test_a_bad_validation_image_is_said_once_and_not_measured(photographs, tmp_path, capsys):
    data_set, output = photographs
    data = read_data_set(data_set, output, "1", "validation")
    copies = [tmp_path / path.name for path in data.paths]
    for path, mine in zip(data.paths, copies, strict=True):
        shutil.copy(path, mine)
    data = dataclasses.replace(data, paths=copies)
    settings = {"image_size": 64, "preprocessing": {"resize": "warp"}, "classes": [0, 1, 2]}

    def measure(measured, limit=0):
        validate = make_validation(measured, settings, orientation="stored", max_bad_images=limit)
        return [validate(Finds()) for _ in range(2)]

    sound = measure(data)
    copies[0].unlink()  # of the class that is found
    first, again = measure(data, limit=1)
    (line,) = capsys.readouterr().out.splitlines()
    assert copies[0].name in line
    assert line.endswith("; it is not measured (1 of at most 1)")
    assert first == again != sound[0]
    rest = _without_image(data_set, output, data.image_ids[0], tmp_path)
    without = read_data_set(rest, tmp_path, "1", "validation", skip_missing=True)
    assert len(without) == len(data) - 1
    assert measure(without)[0] == first
    copies[2].unlink()
    with pytest.raises(InputError, match=copies[2].name):
        measure(data, limit=1)


def _without_image(data_set, output, image_id: str, folder):
    """A data set that lacks one validation image; its a01 files lie in `folder`."""
    copy_level(output, folder)
    shutil.copytree(data_set, folder / "data")
    for path in (folder / "data" / "validation").glob(f"{image_id}.*"):
        path.unlink()
    return folder / "data"


# === In a training ===================================================================================================
@pytest.fixture
def flags(trained, tmp_path):
    """Those of `trained`, with a data set and a folder that a test may change; an epoch of three steps."""
    shutil.copytree(trained.data_set, tmp_path / "data")
    copy_level(trained.output, tmp_path / "out")
    own = {"dataset_path": str(tmp_path / "data"), "output_path": str(tmp_path / "out"), "run": "run", "epochs": 1}
    return trained.flags | own | {"image_size": 64, "scales": 1}


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


def test_weights_that_an_update_spoiled_are_never_saved(trained, tmp_path):
    from training.callbacks import FiniteLossGuard, NonFiniteLoss

    data = read_data_set(trained.data_set, trained.output, "1", "train")
    batches = make(data)
    guard = FiniteLossGuard(tmp_path, batches, {"step": 5})
    weight = keras.Variable(np.array([1.0, np.inf], "float32"), name="kernel")
    trainer = type("Trainer", (), {"trainable_variables": [weight]})()
    with pytest.raises(NonFiniteLoss, match="step 4 made kernel infinite or not a number: look at its") as error:
        guard.check_weights(trainer)
    assert "nothing: there is no checkpoint yet" in str(error.value)
    assert json.loads((tmp_path / "bad_batch.json").read_text())["images"] == batches.ids(4)
    weight.assign(np.array([1.0, 2.0]))
    guard.check_weights(trainer)


def test_a_start_from_a_run_that_does_not_exist_is_refused_before_anything_is_built(flags, monkeypatch):
    def build(*arguments, **options):
        raise AssertionError("it was built")

    monkeypatch.setattr("training.parts.network_from_settings", build)
    monkeypatch.setattr("training.parts.read_data_set", build)
    with pytest.raises(InputError, match=r"--init_from nothing: .* is no run: it has no settings\.json; name another"):
        a03.main(**flags, init_from="nothing")
