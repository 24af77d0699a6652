"""What a training does with images that cannot be read, and with losses and weights that are not finite."""

import dataclasses
import json
import math
import shutil
import threading

import numpy as np
import pytest

from models.suppression import ScoredBoxes
from oid.files import InputError
from oid.images.loader import BadImages
from tests.helpers.project import refused
from tests.helpers.runs import assert_same_batch, history
from tests.helpers.small_training import make_training, train
from tests.helpers.tiny_network import tiny_settings
from training import checkpoints
from training.batches import Batches
from training.data_set import read_data_set
from training.failures import NonFiniteLoss
from training.loop import Training
from training.options import OWN, ImageOptions, LabelOptions, LengthOptions
from training.validation import make_validation
from training.verified_labels import LabelRulesInForce

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


def make(data, said: list[str], *, cache_bytes: int = 2**30, **images) -> Batches:
    rules = LabelRulesInForce(verified=False, regions="all", ancestors=None, region_classes=None)
    return Batches(
        data,
        image_size=64,
        batch_size=4,
        recipe=OWN,
        labels=LabelOptions(),
        images=ImageOptions(**images),
        rules=rules,
        num_classes=3,
        seed=3,
        cache_bytes=cache_bytes,
        report=said.append,
    )


# === Images that cannot be read ======================================================================================
def test_a_bad_image_is_replaced_the_same_way_in_any_order_and_said_once(data):
    sound = make(data, [])
    whole = {step: (sound.batch(step), sound.ids(step)) for step in STEPS}
    data.paths[2].write_bytes(data.paths[2].read_bytes()[:200])
    data.paths[5].unlink()
    bad, said = {data.image_ids[2], data.image_ids[5]}, []
    first, second = make(data, said, max_bad_images=2), make(data, [], max_bad_images=2)
    uncached = make(data, [], max_bad_images=2, cache_bytes=0)
    met = {step: first.batch(step) for step in STEPS}
    assert {line.split("/")[-1].split(".")[0] for line in said} == bad
    endings = [f"; another image stands in for it ({count} of at most 2)" for count in (1, 2)]
    assert [line.endswith(ending) for line, ending in zip(said, endings, strict=True)] == [True, True]
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
    assert first.notes(STEPS)[0].startswith("2 images could not be read and were replaced by others: ")


@pytest.mark.parametrize("limit", [1, 1000])
def test_more_bad_images_than_allowed_end_the_training_in_one_sentence(data, limit):
    for path in data.paths:
        path.unlink()
    with refused(f"{min(limit + 1, len(data))} of {len(data)} images cannot be read, and {limit} are allowed; the "):
        make(data, [], max_bad_images=limit).batch(0)


class FindsTheFirst:
    """A detector that finds the same box of the first class in each image."""

    def detect_prepared(self, inputs, **options):
        return [ScoredBoxes(np.array([[0.1, 0.1, 0.6, 0.9]]), np.array([0.5]), np.array([0]))] * len(inputs)


def test_a_bad_validation_image_is_said_once_and_not_measured(photographs, tmp_path):
    data, said = copied(read_data_set(*photographs, "1", "validation"), tmp_path), []

    def measure(measured, limit=0):
        settings = tiny_settings(classes=tuple((name, name) for name in "abc"))
        validation = make_validation(measured, settings, max_bad_images=limit, report=said.append)
        return [validation.measure(FindsTheFirst()) for _ in range(2)]

    sound = measure(data)
    data.paths[0].unlink()  # of the class that is found
    first, again = measure(data, limit=1)
    (line,) = said
    assert data.paths[0].name in line
    assert line.endswith("; it is not measured (1 of at most 1)")
    assert first == again != sound[0]
    shutil.copytree(photographs[0], tmp_path / "data")
    (tmp_path / "data" / "validation" / data.paths[0].name).unlink()
    without = read_data_set(tmp_path / "data", photographs[1], "1", "validation")
    assert len(without) == len(data) - 1
    assert measure(without)[0] == first
    data.paths[2].unlink()
    with refused(data.paths[2].name):
        measure(data, limit=1)


# === In a training ===================================================================================================
@pytest.mark.usefixtures("tiny_backbone")
def test_too_many_bad_images_end_a_training_that_goes_on_when_they_are_mended(photographs, tmp_path, monkeypatch):
    """The images vanish after its second step; what was learned is saved, and nothing of a third step."""
    own = shutil.copytree(photographs[0], tmp_path / "data"), photographs[1]
    images, away, gone = own[0] / "train", tmp_path / "away", threading.Event()
    batch, after_step = Batches.batch, Training._after_step

    def waiting(self, step, **options):
        assert step < 2 or gone.wait(60)  # batches are prepared ahead
        return batch(self, step, **options)

    def counting(self, *arguments):
        after_step(self, *arguments)
        if self.state.step == 2:
            images.rename(away)
            gone.set()

    monkeypatch.setattr("training.batches.RECENT_IMAGES", 0)
    monkeypatch.setattr(Batches, "batch", waiting)
    monkeypatch.setattr(Training, "_after_step", counting)
    changes = {"epochs": 1, "steps": 6, "max_bad_images": 1, "mosaic": 0.0, "cache_bytes": 0}
    with pytest.raises(BadImages, match="2 of 12 images cannot be read, and 1 are allowed"):
        train(own, tmp_path / "run", **changes)
    saved, state, _ = checkpoints.find_checkpoint(tmp_path / "run")
    assert state.step == 2
    with np.load(saved / checkpoints.TRAINING) as arrays:
        assert [int(array) for array in arrays.values() if array.ndim == 0 and array.dtype.kind == "i"] == [2]
    away.rename(images)
    said = []
    train(own, tmp_path / "run", said=said, **changes)
    assert any("going on after epoch 0 of 1 and 2 of 6 steps" in line for line in said)
    assert [row["epoch"] for row in history(tmp_path / "run")] == ["1"]


@pytest.mark.usefixtures("tiny_backbone")
def test_a_loss_or_weight_that_is_not_finite_names_the_images_and_is_not_saved(photographs, tmp_path):
    training = make_training(photographs, tmp_path / "run", said=[])
    training.begin(LengthOptions(None, 1, 4))
    ids = training._batches.ids(0)
    with pytest.raises(NonFiniteLoss, match=r"the loss of step 0 is nan: look at its images .*no checkpoint yet"):
        training._after_step({"loss": math.nan}, lambda: None)
    assert json.loads((tmp_path / "run" / "bad_batch.json").read_text())["images"] == ids
    training.state = dataclasses.replace(training.state, step=1)
    weight = training._trainer.trainable_variables[0]
    weight.assign(np.full(weight.shape, np.inf))
    with pytest.raises(InputError, match=f"step 0 made {weight.path} infinite or not a number"):
        training._save()
    assert not (tmp_path / "run" / "checkpoint").exists()
