"""The page of --show_batches shows the batches and assignments of training steps and leaves the run unchanged."""

import re
from types import SimpleNamespace

import keras
import numpy as np
import pytest

import a03_train_m2det as a03
from models.detector import build_network
from tests.helpers.runs import history, in_folder
from tests.helpers.tiny_network import pictures, targets, tiny_settings
from training import batch_page
from training.options import Options, Recipe, TrainingSettings
from training.state import Plan, TrainingState
from training.trainer import DetectionTrainer

NAMES = ["Apple", "Pear, green"]
FREQUENCY = np.array([5, 3])


@pytest.fixture(scope="module")
def network():
    keras.utils.set_random_seed(0)
    return build_network(tiny_settings())


def trainer_of(network, assignment="max_iou"):
    class_loss = "focal" if assignment == "max_iou" else "bce"
    return DetectionTrainer(network, tiny_settings().anchors, assignment=assignment, class_loss=class_loss)


def looked(network, rows, assignment="max_iou", regions=None, ids=("a",), **changes) -> batch_page.ShownImage:
    """An image with hand-made ground truth, as the trainer sees it."""
    truth = targets([rows], regions, width=6) | changes
    (shown,) = batch_page.see(trainer_of(network, assignment), pictures(1), truth, [ids])
    return shown


def described(shown, names=NAMES) -> str:
    return batch_page.describe(shown, names, FREQUENCY)


# === Which boxes have anchors ========================================================================================
def test_boxes_with_anchors_are_green_and_others_red(network):
    """Anchors are four cells wide; two boxes in the middle of one cell want the same ones, and the larger gets them."""
    anchor = trainer_of(network).anchors.boxes()[27].tolist()  # of the largest map: cell 3, 3 of 8 x 8
    x, y = (anchor[0] + anchor[2]) / 2, (anchor[1] + anchor[3]) / 2
    nested = [(0, x - half, y - half, x + half, y + half) for half in (0.04, 0.02)]
    found = looked(network, [(1, 0.7, 0.7, 0.98, 0.98), *nested])
    assert (found.anchors > 0).tolist() == [True, True, False]
    assert found.best_iou[1] == pytest.approx(0.08**2 / 0.5**2, rel=1e-4)
    drawn = batch_page.draw(found, NAMES, FREQUENCY)
    for box, colour in zip(found.boxes, (batch_page.GREEN, batch_page.GREEN, batch_page.RED), strict=True):
        side = len(drawn)
        column = drawn[round((box[1] + box[3]) / 2 * side), round(float(box[2]) * side)]
        assert np.abs(column.astype(int) - colour).max() < 12, box
    text = described(found)
    assert re.findall("<span class=(yes|no)>", text) == ["yes", "yes", "no"]
    assert "Apple: no anchor (IoU 0.01)" in text


def test_a_box_too_small_for_every_anchor_has_its_best_one_and_that_is_said(network):
    found = looked(network, [(0, 0.5, 0.5, 0.53, 0.53), (1, 0.1, 0.1, 0.6, 0.6)])
    assert found.anchors[0] == 1
    assert found.best_iou[0] < 0.01
    sentences = batch_page.summary([found], NAMES, "max_iou")
    assert sentences[0] == "2 of 2 boxes (100.0 %) have an anchor; 2 of 2 classes are seen."
    assert sentences[1].startswith("1 boxes overlap no anchor by 0.5")


@pytest.mark.parametrize("assignment", ["max_iou", "task_aligned"])
def test_the_anchors_are_those_of_a_training_step(network, assignment):
    trainer = trainer_of(network, assignment)
    rows = [(0, *trainer.anchors.boxes()[27].tolist())]
    found = looked(network, rows, assignment)
    assert found.best_iou[0] == pytest.approx(1, abs=1e-5)
    step = np.asarray(trainer.assigned(pictures(1), targets([rows], width=6)))[0]
    assert found.anchors.tolist() == [np.count_nonzero(step == 0)]
    assert found.anchors[0] > 0


def test_a_box_with_two_classes_is_one_object_named_by_the_rarer(network):
    box = (0.1, 0.1, 0.6, 0.7)
    found = looked(network, [(0, *box), (0, 0.6, 0.6, 0.9, 0.9), (1, *box)])
    assert found.objects(FREQUENCY) == {0: [1, 0], 1: [0]}
    assert found.anchors[0] == found.anchors[2] > 0
    table = batch_page.class_table([found], NAMES)
    assert [row[:2] for row in table.rows] == [("Apple", "2"), ("Pear, green", "1")]
    assert sum(int(row[1]) for row in batch_page.size_table([found]).rows) == 2
    assert "Pear, green, Apple: " in described(found)


def test_a_picture_without_boxes(network):
    found = looked(network, [])
    assert batch_page.draw(found, NAMES, FREQUENCY).shape == (448, 448, 3)
    assert "boxes: none" in described(found)
    assert batch_page.summary([found], NAMES, "max_iou")[0].startswith("no boxes")


# === Ignored regions and verified classes ============================================================================
def test_an_ignored_region_is_pale_inside_its_box_only():
    picture = np.full((100, 200, 3), 255, "uint8")
    batch_page.make_pale(picture, np.float32([0.5, 0.2, 1.3, 0.6]))
    changed = (picture != 255).any(axis=2)
    assert changed[20:61, 100:].all()
    assert changed.sum() == 41 * 100


def test_a_region_below_a_coarse_class_is_named_by_it(network):
    data = SimpleNamespace(
        region_classes=np.array([[1, 0], [0, 1], [0, 1], [1, 1]], "float32"), coarse_names=("Fruit", "Anything")
    )
    names = NAMES + batch_page.coarse_names(data, 2)
    assert names[2:] == ["below Fruit", "every class"]
    found = looked(network, [], regions=[[(2, 0.1, 0.1, 0.5, 0.6), (3, 0.6, 0.1, 0.9, 0.9), (2, 0, 0, 0.1, 0.1)]])
    text = described(found, names=names)
    assert "ignored regions: below Fruit x 2, every class" in text
    assert batch_page.draw(found, names, FREQUENCY).shape[2] == 3
    assert batch_page.coarse_names(SimpleNamespace(coarse_names=()), 2) == []


def test_verified_classes_are_those_of_their_part(network):
    parts = np.float32([[[0, 0, 0.5, 1], [0.5, 0, 1, 1], [0, 0, 0, 0], [0, 0, 0, 0]]])
    verified = np.uint8([[[1, 1], [1, 0], [0, 0], [0, 0]]])
    text = described(looked(network, [], ids=("a", "b"), parts=parts, verified=verified))
    assert "top left (a): verified Apple, Pear, green<br>" in text
    assert text.endswith("top right (b): verified Apple")
    assert "all classes count as verified" in described(looked(network, []))


# === Which steps =====================================================================================================
@pytest.mark.parametrize(
    ("step", "plan", "recipe", "shown"),
    [
        (0, None, Recipe(), [(0, False), (1, False), (2, True)]),
        (0, None, Recipe(mosaic=0.0, resize="warp"), [(0, False), (1, False)]),  # all are alike
        (83, Plan(epochs=10, steps=10, close_at=84), Recipe(), [(83, False), (84, True)]),
    ],
)
def test_steps_go_on_where_the_training_is_and_show_its_last_part(step, plan, recipe, shown):
    training = TrainingSettings(Options(), recipe, batch_size=4, learning_rate=0.1, precision="float32")
    assert batch_page.steps_to_show(TrainingState(step=step, plan=plan, training=training), 2) == shown


# === a03 =============================================================================================================
@pytest.fixture(scope="module")
def looking(trained, tmp_path_factory):
    """The flags of a run that is only looked at, and its folder."""
    return in_folder(trained, tmp_path_factory.mktemp("pages"), run="looked")


def test_a03_writes_the_page_and_nothing_else(looking, capsys):
    flags, folder = looking
    (folder / "checkpoint.new").mkdir(parents=True)
    a03.main(**flags, show_batches=2)
    printed = capsys.readouterr().out
    assert sorted(path.name for path in folder.iterdir()) == ["batches.html", "checkpoint.new"]
    assert printed.splitlines()[-1].startswith(f"{folder / 'batches.html'}: 12 images of 3 batches; ")
    text = (folder / "batches.html").read_text()
    assert text.count('<img alt="training image" src="data:image/jpeg;base64,') == 12
    assert not re.search(r'(src|href)="(?!data:)', text)
    assert "of a new network" in text
    steps = ["Step 0", "Step 1", "Step 2, as in the last 15 % of the steps"]
    assert re.findall("<h2>(.*?)</h2>", text) == steps
    assert re.search(r"verified (apple|tomato|carrot)", text)
    assert "t_group" in text or "t00" in text


@pytest.mark.slow
def test_the_page_changes_nothing_in_the_training(looking, trained):
    flags, folder = looking
    a03.main(**flags, show_batches=1)
    a03.main(**flags)
    losses = [[(row["loss"], row["mAP"]) for row in history(run)] for run in (folder, trained.folder)]
    assert losses[0] == losses[1]

    def files():
        return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.name != "batches.html"}

    before = files()
    a03.main(**flags, show_batches=1)
    assert files() == before
    assert "of the checkpoint of step 6" in (folder / "batches.html").read_text()
