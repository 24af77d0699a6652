"""The page of --show_batches shows the batches and assignments of training steps and leaves the run unchanged."""

import dataclasses
import re
from types import SimpleNamespace

import keras
import numpy as np
import pytest

import a03_train_m2det as a03
from models.detector import network_from_settings
from tests.helpers.project import refused
from tests.helpers.runs import history, in_folder
from tests.helpers.tiny_network import pictures, targets, tiny_settings
from training import batch_page
from training.data_set import Boxes
from training.trainer import DetectionTrainer

NAMES = ["Apple", "Pear, green"]


@pytest.fixture(scope="module")
def network():
    keras.utils.set_random_seed(0)
    return network_from_settings(tiny_settings())


def trainer_of(network, assignment="max_iou"):
    return DetectionTrainer(network, tiny_settings()["anchors"], assignment=assignment)


def looked(network, rows, assignment="max_iou", regions=None, **changes):
    """A picture with hand-made ground truth, as the trainer sees it."""
    trainer, images = trainer_of(network, assignment), pictures(1)
    truth = targets([rows], regions, width=6) | changes
    assigned = np.asarray(trainer.assigned(images, truth))
    return batch_page.picture_of(trainer, images, truth, assigned, 0, np.array([5, 3]), ([0], []))


def described(found, names=NAMES, images=("a",), present=None, assignment="max_iou") -> str:
    return batch_page.describe(found, names, images, present or {0: set()}, assignment)


# === Which boxes have anchors ========================================================================================
@pytest.mark.parametrize("assignment", ["max_iou", "atss"])
def test_boxes_with_anchors_are_green_and_others_red(network, assignment):
    """Anchors are four cells wide; two boxes in the middle of one cell want the same ones, and the larger gets them."""
    anchor = trainer_of(network).anchors.boxes[27].tolist()  # of the largest map: cell 3, 3 of 8 x 8
    x, y = (anchor[0] + anchor[2]) / 2, (anchor[1] + anchor[3]) / 2
    nested = [(0, x - half, y - half, x + half, y + half) for half in (0.04, 0.02)]
    found = looked(network, [(1, 0.7, 0.7, 0.98, 0.98), *nested], assignment)
    assert (found.anchors > 0).tolist() == [True, True, False]
    assert found.best_iou[1] == pytest.approx(0.08**2 / 0.5**2, rel=1e-4)
    drawn = batch_page.draw(found, NAMES)
    for box, colour in zip(found.boxes, (batch_page.GREEN, batch_page.GREEN, batch_page.RED), strict=True):
        side = len(drawn)
        column = drawn[round((box[1] + box[3]) / 2 * side), round(float(box[2]) * side)]
        assert np.abs(column.astype(int) - colour).max() < 12, box
    text = described(found, assignment=assignment)
    assert re.findall("<span class=(yes|no)>", text) == ["yes", "yes", "no"]
    assert "Apple: no anchor (IoU 0.01)" in text


def test_a_box_too_small_for_every_anchor_has_its_best_one_and_that_is_said(network):
    found = looked(network, [(0, 0.5, 0.5, 0.53, 0.53), (1, 0.1, 0.1, 0.6, 0.6)])
    assert found.anchors[0] == 1
    assert found.best_iou[0] < 0.01
    sentences = batch_page.summary([found], NAMES, 3, {"max_gt_boxes": 2, "assignment": "max_iou"})
    assert sentences[0].startswith("2 of 2 boxes (100.0 %) have an anchor; 2 of 2 classes are seen; 3 boxes are left")
    assert sentences[1].startswith("1 boxes overlap no anchor by 0.5")


def test_a_box_equal_to_an_anchor_is_assigned_to_it(network):
    trainer = trainer_of(network)
    rows = [(0, *trainer.anchors.boxes[27].tolist())]
    found = looked(network, rows)
    assert found.best_iou[0] == pytest.approx(1, abs=1e-5)
    step = np.asarray(trainer.assigned(pictures(1), targets([rows], width=6)))[0]
    assert found.anchors.tolist() == [np.count_nonzero(step == 0)]
    assert step[27] == 0


def test_a_box_with_two_classes_is_one_object_named_by_the_rarer(network):
    box = (0.1, 0.1, 0.6, 0.7)
    found = looked(network, [(0, *box), (0, 0.6, 0.6, 0.9, 0.9), (1, *box)])
    assert found.objects == {0: [1, 0], 1: [0]}
    assert found.anchors[0] == found.anchors[2] > 0
    table = batch_page.class_table([found], NAMES)
    assert [row[:2] for row in table.rows] == [("Apple", "2"), ("Pear, green", "1")]
    assert sum(int(row[1]) for row in batch_page.size_table([found]).rows) == 2
    assert "Pear, green, Apple: " in described(found)


def test_task_aligned_assignment_has_candidates(network):
    found = looked(network, [(0, 0.1, 0.1, 0.6, 0.7)], "task_aligned")
    assert 0 < found.anchors[0] <= found.candidates[0]


def test_a_picture_without_boxes(network):
    found = looked(network, [])
    assert batch_page.draw(found, NAMES).shape == (448, 448, 3)
    assert "boxes: none" in described(found)
    assert batch_page.summary([found], NAMES, 0, {"max_gt_boxes": 2, "assignment": "max_iou"})[0].startswith("no boxes")


# === Ignored regions and verified classes ============================================================================
def test_a_hatch_keeps_within_its_box_and_the_picture():
    picture = np.full((100, 200, 3), 128, "uint8")
    batch_page.hatch(picture, np.float32([0.5, 0.2, 1.3, 0.6]))
    changed = (picture != 128).any(axis=2)
    assert not changed[:20].any()
    assert not changed[61:].any()
    assert not changed[:, :100].any()
    assert 0.25 < changed[20:60, 100:].mean() < 0.45


def test_a_region_below_a_coarse_class_is_named_by_it(network):
    data = SimpleNamespace(
        region_classes=np.array([[1, 0], [0, 1], [0, 1], [1, 1]], "float32"), coarse_names=("Fruit", "Anything")
    )
    names = NAMES + batch_page.coarse_names(data, 2)
    assert names[2:] == ["below Fruit", "every class"]
    found = looked(network, [], regions=[[(2, 0.1, 0.1, 0.5, 0.6), (3, 0.6, 0.1, 0.9, 0.9), (2, 0, 0, 0.1, 0.1)]])
    text = described(found, names=names)
    assert "ignored regions: below Fruit x 2, every class" in text
    assert batch_page.draw(found, names).shape[2] == 3
    assert batch_page.coarse_names(SimpleNamespace(coarse_names=()), 2) == []


def test_classes_are_present_or_absent_as_the_images_own_labels_say(network, tmp_path):
    folder = tmp_path / "level_1_files"
    folder.mkdir()
    rows = "ImageID,LabelName,Confidence\na,/m/pear,1\nb,/m/apple,0\nb,/m/pear,1\nother,/m/apple,1\n"
    (folder / "train-image-labels-level-1.csv").write_text(rows)
    offsets = np.array([0, 1, 1, 1])
    data = SimpleNamespace(
        image_ids=["a", "b", "c"],
        objects=Boxes(offsets, np.zeros((1, 4), "float32"), np.zeros(1, "int32")),
        regions=Boxes(np.array([0, 0, 1, 2]), np.zeros((2, 4), "float32"), np.array([0, 0], "int32")),
        group_of=np.array([False, True]),
        depiction=np.zeros(2, bool),
    )
    flags = {"output_path": str(tmp_path), "level": "1"}
    present = batch_page.classes_present(data, [0, 1, 2], flags, ["/m/apple", "/m/pear"])
    assert present == {0: {0, 1}, 1: {1}, 2: {0}}  # by box and label; by label, as its region is no box; by group-of

    parts = np.float32([[[0, 0, 0.5, 1], [0.5, 0, 1, 1], [0, 0, 0, 0], [0, 0, 0, 0]]])
    verified = np.uint8([[[1, 1], [1, 0], [0, 0], [0, 0]]])
    found = looked(network, [], parts=parts, verified=verified)
    found = dataclasses.replace(found, tiles=[0, 1])
    text = described(found, images=["a", "b"], present=present)
    assert "top left (a): present Apple, Pear, green; absent none" in text
    assert "top right (b): present none; absent Apple" in text
    assert "all classes count as verified" in described(looked(network, []))


# === Which steps =====================================================================================================
def test_steps_go_on_where_the_training_is_and_show_its_last_part():
    flags = {"mosaic": 0.5, "mixup": 0.0, "resize": "warp", "seed": 0}
    trainer, fresh = SimpleNamespace(sizes=(64, 96)), {"step": 0, "total": 0, "steps": 0}
    shown = batch_page.steps_to_show(trainer, flags, fresh, 3)
    assert shown == [(0, 64, False), (1, 96, False), (2, 64, False), (3, 64, True)]
    trainer.sizes = (64,)
    assert batch_page.steps_to_show(trainer, flags | {"mosaic": 0}, fresh, 1) == [(0, 64, False)]  # all are alike
    begun = {"step": 83, "total": 10, "steps": 10}
    assert batch_page.steps_to_show(trainer, flags, begun, 3) == [(83, 64, False), (84, 64, False), (85, 64, True)]


# === a03 =============================================================================================================
@pytest.fixture(scope="module")
def looking(trained, tmp_path_factory):
    """The flags of a run that is only looked at, and its folder."""
    return in_folder(trained, tmp_path_factory.mktemp("pages"), run="looked")


def test_a03_writes_the_page_and_nothing_else(looking, capsys):
    flags, folder = looking
    (folder / "checkpoint.new").mkdir(parents=True)
    a03.main(**flags, show_batches=2, multi_scale=(64,))
    printed = capsys.readouterr().out
    assert sorted(path.name for path in folder.iterdir()) == ["batches.html", "checkpoint.new"]
    assert printed.splitlines()[-1].startswith(f"{folder / 'batches.html'}: 12 pictures of 3 batches; ")
    text = (folder / "batches.html").read_text()
    assert text.count('<img alt="training picture" src="data:image/jpeg;base64,') == 12
    assert not re.search(r'(src|href)="(?!data:)', text)
    assert "of a new network" in text
    steps = ["Step 0, 96 pixels", "Step 1, 64 pixels", "Step 2, 96 pixels, as in the last 15 % of the steps"]
    assert re.findall("<h2>(.*?)</h2>", text) == steps
    assert re.search(r"verified: present (apple|tomato|carrot)", text)
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


def test_mistakes_are_one_sentence(looking):
    with refused("--show_batches is -1: it must be at least 0"):
        a03.main(**looking[0], show_batches=-1)
    with refused("--show_batches 2 needs one process: leave out --processes"):
        a03.main(**looking[0], show_batches=2, processes=2)
