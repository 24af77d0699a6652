"""A page with batches as the network sees them: which boxes have anchors, what is ignored, what is verified.

Batches, anchors and assignment are those of a training step. Nothing is learned and nothing is kept.
"""

import dataclasses
import html
import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from keras import ops
from tqdm import tqdm

from models.assignment import pairwise_iou, same_boxes
from oid.page import Table, corners, draw_name, draw_outline, picture_html, scaled, table_html, write_page
from training.batches import Batches
from training.data_set import DataSet
from training.state import TrainingState
from training.trainer import DetectionTrainer

LONGER_SIDES = (448, 800)  # pixels of a drawn image: smaller ones are enlarged, larger ones reduced
GREEN, RED, BLACK = (0, 130, 40), (205, 20, 20), (30, 30, 30)
MOST_NAMES = 40  # classes that are listed by name for a part of an image
SIZE_LIMITS = (16, 32, 64, 128, 256)  # pixels: square root of a box's area
GOOD_IOU = 0.5
COUNTED = ("boxes", "with an anchor", "anchors per box (median)")
PLACES = ("top left", "top right", "bottom left", "bottom right")  # of a mosaic's parts, in their order
STYLE = """
.batch { display: grid; grid-template-columns: repeat(auto-fill, minmax(400px, 1fr)); gap: 18px; align-items: start; }
.batch figure { margin: 0; } h2 { font-size: 17px; margin-top: 1.6em; } figcaption { color: #333; }
.tables { display: flex; flex-wrap: wrap; gap: 0 3em; align-items: start; }
.yes { color: rgb(0, 110, 35); } .no { color: rgb(205, 20, 20); font-weight: 600; }
"""
LEGEND = (
    "<p><span class=yes>Green</span>: anchors learn the box; the number counts them. <span class=no>Red</span>: no "
    "anchor learns the box. IoU: with the best anchor. Pale: an ignored region, where its class, or each class "
    "below it, gives no gradient: a01's, or what the frame leaves of an object. A box with several classes counts "
    "once; its name is the rarest, +2 are two more.</p>"
)
ASSIGNMENTS = {
    "max_iou": "Every box takes its best anchor (max_iou), and an anchor learns the box that it overlaps by at least "
    f"{GOOD_IOU}: red is a box whose best anchor another box took.",
    "task_aligned": "Anchors are chosen by score and overlap of the network's predictions (task_aligned), here those "
    "of {weights}: they change as it learns. Red is a box that no prediction overlaps, or that lost its anchors to "
    "other boxes.",
}


@dataclasses.dataclass(frozen=True)
class ShownImage:
    """An image of a batch, and what a step makes of it.

    Attributes:
        image: uint8 `(size, size, 3)`, RGB.
        boxes: `(N, 4)`, xyxy, normalised.
        labels: `(N,)`, class indices.
        first: `(N,)`, the first row with the same coordinates as each row: these are one object.
        anchors: `(N,)`, number of anchors that learn each box.
        best_iou: `(N,)`, the highest IoU with any anchor.
        regions: `(M, 4)`, the ignored ones.
        region_labels: `(M,)`; see `coarse_names` for those that are no class.
        verified: for each part the classes that are verified there; None where all classes count as verified.
        ids: of the images that it shows: one, or a mosaic's four.
    """

    image: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray
    first: np.ndarray
    anchors: np.ndarray
    best_iou: np.ndarray
    regions: np.ndarray
    region_labels: np.ndarray
    verified: list[list[int]] | None
    ids: list[str]

    def objects(self, frequency: np.ndarray) -> dict[int, list[int]]:
        """The classes of each object, the rarest (so the most specific) first, by its first row."""
        rows = {k: self.labels[self.first == k] for k in np.unique(self.first).tolist()}
        return {k: labels[np.argsort(frequency[labels], kind="stable")].tolist() for k, labels in rows.items()}

    @property
    def sizes(self) -> np.ndarray:
        """Square roots of the boxes' areas in pixels, `(N,)`."""
        sides = np.maximum(self.boxes[:, 2:] - self.boxes[:, :2], 0)
        return np.sqrt(sides.prod(axis=1)) * len(self.image)


# === What a step makes of a batch ====================================================================================
def show(page: Path, trainer: DetectionTrainer, batches: Batches, state: TrainingState, *, count: int) -> str:
    """Writes the page and returns a sentence about it.

    Args:
        page: the HTML file.
        trainer: with the weights of the training so far.
        batches: of the training.
        state: of the training.
        count: number of batches, from the next step on; another one of the training's last part is added.
    """
    names, recipe = state.run.names, state.training.recipe
    frequency = np.bincount(batches.data.objects.labels, minlength=len(names))
    all_names = names + coarse_names(batches.data, len(names))
    parts, shown = [], []
    steps = steps_to_show(state, count)
    for step, closed in tqdm(steps, desc="batches", disable=None):
        sources = [batches.sources(step, row, closed=closed) for row in range(batches.batch_size)]
        ids = [[batches.data.image_ids[image] for image in images] for images in sources]
        parts.append(f"<h2>Step {step}{', as in the last 15 % of the steps' * closed}</h2><div class=batch>")
        for image in see(trainer, *batches.batch(step, closed=closed), ids):
            shown.append(image)
            parts.append(f"<figure>{picture_html(draw(image, all_names, frequency), 'training image')}")
            parts.append(f"<figcaption>{describe(image, all_names, frequency)}</figcaption></figure>")
        parts.append("</div>")
    sentences = summary(shown, names, recipe.assignment)
    sentences += batches.notes(range(state.step, state.step + len(steps)))
    source = state.training.options.network.init_from
    new = f"the weights of {source}" if source else "a new network"
    weights = f"the checkpoint of step {state.step}" if state.step else new
    sentences.append(ASSIGNMENTS[recipe.assignment].format(weights=weights))
    top = [f"<p>{html.escape(text)}</p>" for text in sentences]
    top += [
        LEGEND,
        "<div class=tables>",
        table_html(size_table(shown)),
        table_html(class_table(shown, names)),
        "</div>",
    ]
    write_page(page, f"Batches of {page.parent.name}", top + parts, style=STYLE)
    return f"{page}: {len(shown)} images of {len(steps)} batches; {sentences[0]}"


def steps_to_show(state: TrainingState, count: int) -> list[tuple[int, bool]]:
    """The next steps of the training, and one of its last part where that differs: (step, whether it is closed)."""
    close_at = state.plan.close_at if state.plan else math.inf
    steps = [(step, step >= close_at) for step in range(state.step, state.step + count)]
    recipe = state.training.recipe
    if (recipe.mosaic or recipe.resize == "letterbox") and not steps[-1][1]:
        steps.append((state.step + count, True))
    return steps


def see(
    trainer: DetectionTrainer, images: np.ndarray, targets: dict[str, np.ndarray], ids: list[list[str]]
) -> list[ShownImage]:
    """What a step makes of a batch.

    Args:
        trainer: with the anchors and the assignment.
        images: uint8 `(batch, size, size, 3)`.
        targets: see `Batches.batch`.
        ids: for each image the ids of those that it is made of.
    """
    assigned = ops.convert_to_numpy(trainer.assigned(images, targets))
    truth = ops.convert_to_tensor(targets["boxes"])
    same = ops.convert_to_numpy(same_boxes(truth))
    best_iou = ops.convert_to_numpy(ops.max(pairwise_iou(truth, ops.convert_to_tensor(trainer.anchors.boxes())), -1))
    found = []
    for row, image in enumerate(images):
        target = {name: values[row] for name, values in targets.items()}
        real, ignored = target["labels"] >= 0, target.get("region_labels", np.zeros(0, int)) >= 0
        of_row = np.bincount(assigned[row][assigned[row] >= 0], minlength=len(real))
        alike = same[row] & real  # rows that are one object have its anchors together
        verified = None
        if "verified" in target:
            verified = [np.flatnonzero(part).tolist() for part in target["verified"][target["parts"].any(axis=-1)]]
        shown = ShownImage(
            image=image,
            boxes=target["boxes"][real],
            labels=target["labels"][real],
            first=alike[real].argmax(axis=1),
            anchors=(alike @ of_row)[real],
            best_iou=best_iou[row, real],
            regions=target.get("regions", np.zeros((0, 4)))[ignored],
            region_labels=target.get("region_labels", np.zeros(0, int))[ignored],
            verified=verified,
            ids=ids[row],
        )
        found.append(shown)
    return found


# === Images ==========================================================================================================
def draw(shown: ShownImage, names: list[str], frequency: np.ndarray) -> np.ndarray:
    """Draws the image with its ignored regions pale and its boxes green where an anchor learns them, red elsewhere.

    Args:
        shown: what to draw.
        names: of the classes, and behind them those of `coarse_names`.
        frequency: `(classes,)`, boxes of each class in the data set.
    """
    least, most = LONGER_SIDES
    drawn = scaled(shown.image, min(max(len(shown.image), least), most))
    for box, count in Counter(map(tuple, shown.regions)).items():  # several rows may share a rectangle
        make_pale(drawn, box)
        name = names[shown.region_labels[(shown.regions == box).all(axis=1)][0]]
        draw_name(drawn, box, f"ignored: {_with_more(name, count - 1)}", BLACK)
    objects, sizes = shown.objects(frequency), shown.sizes
    order = sorted(objects, key=lambda k: (shown.anchors[k] == 0, -sizes[k]))  # red ones and small ones on top
    for k in order:
        draw_outline(drawn, shown.boxes[k], GREEN if shown.anchors[k] else RED)
    for k in order:
        text = f"{_with_more(names[objects[k][0]], len(objects[k]) - 1)}: {shown.anchors[k]}"
        draw_name(drawn, shown.boxes[k], text, GREEN if shown.anchors[k] else RED)
    return drawn


def _with_more(name: str, more: int) -> str:
    return f"{name} +{more}" if more else name


def make_pale(image: np.ndarray, box: Sequence[float]) -> None:
    """Halves the contrast inside a box, xyxy normalised, and draws its outline."""
    x0, y0, x1, y1 = np.clip(corners(box, image), 0, max(image.shape))
    image[y0:y1, x0:x1] = image[y0:y1, x0:x1] // 2 + 110
    cv2.rectangle(image, (int(x0), int(y0)), (int(x1), int(y1)), BLACK, 1)


# === Texts and tables ================================================================================================
def coarse_names(data: DataSet, num_classes: int) -> list[str]:
    """Names for the labels of ignored regions that mean the classes below a coarse one."""
    if not data.coarse_names:
        return []
    every = data.region_classes[num_classes:].all(axis=1)
    named = zip(data.coarse_names, every, strict=True)
    return ["every class" if all_classes else f"below {name}" for name, all_classes in named]


def describe(shown: ShownImage, names: list[str], frequency: np.ndarray) -> str:
    """Describes an image in HTML: its images, boxes, ignored regions and verified classes."""
    ids = [html.escape(image_id) for image_id in shown.ids]
    lines = [f"mosaic of {', '.join(ids)}" if len(ids) > 1 else f"image {ids[0]}"]
    boxes = []
    for k, labels in shown.objects(frequency).items():
        number, kind = (shown.anchors[k], "yes") if shown.anchors[k] else ("no anchor", "no")
        text = f"{_listed(labels, names)}: {number} (IoU {shown.best_iou[k]:.2f})"
        boxes.append(f"<span class={kind}>{text}</span>")
    lines.append(f"boxes: {' · '.join(boxes) or 'none'}")
    if len(shown.regions):
        counts = Counter(names[label] for label in shown.region_labels)
        regions = ", ".join(html.escape(name) + (f" x {n}" if n > 1 else "") for name, n in counts.items())
        lines.append(f"ignored regions: {regions}")
    if shown.verified is None:
        lines.append("all classes count as verified")
    for place, part in enumerate(shown.verified or []):
        where = f"{PLACES[place]} ({ids[place]}): " if len(ids) > 1 else ""
        lines.append(f"{where}verified {_listed(part, names)}")
    return "<br>".join(lines)


def _listed(classes: list[int], names: list[str]) -> str:
    more = f" and {len(classes) - MOST_NAMES} more" if len(classes) > MOST_NAMES else ""
    return html.escape(", ".join(names[c] for c in classes[:MOST_NAMES]) or "none") + more


def summary(images: list[ShownImage], names: list[str], assignment: str) -> list[str]:
    """The sentences at the top."""
    anchors, best = _of_objects(images, "anchors"), _of_objects(images, "best_iou")
    boxes, with_anchor = len(anchors), int(np.count_nonzero(anchors))
    seen = len(set().union(*(image.labels.tolist() for image in images)))
    share = f"{with_anchor} of {boxes} boxes ({100 * with_anchor / boxes:.1f} %)" if boxes else "no boxes: none"
    sentences = [f"{share} have an anchor; {seen} of {len(names)} classes are seen."]
    if assignment == "max_iou" and (poor := int(np.count_nonzero(best < GOOD_IOU))):
        sentences.append(
            f"{poor} boxes overlap no anchor by {GOOD_IOU}: they learn by their best anchor alone, if no other box "
            "takes it. Where these are many, other anchors would fit better."
        )
    return sentences


def size_table(images: list[ShownImage]) -> Table:
    """Counts boxes and their anchors by the boxes' size."""
    place, anchors = np.digitize(_of_objects(images, "sizes"), SIZE_LIMITS), _of_objects(images, "anchors")
    rows = [(f"from {(0, *SIZE_LIMITS)[k]}", *_counts(anchors[place == k])) for k in np.unique(place)]
    return Table("Square root of a box's area, in pixels", ("pixels", *COUNTED), rows)


def class_table(images: list[ShownImage], names: list[str]) -> Table:
    """The same by class, those with the largest share without an anchor first, then the most frequent."""
    labels, anchors = (np.concatenate([getattr(image, name) for image in images]) for name in ("labels", "anchors"))
    found = {int(label): anchors[labels == label] for label in np.unique(labels)}
    order = sorted(found, key=lambda label: (np.mean(found[label] > 0), -len(found[label])))
    return Table("Classes", ("class", *COUNTED), [(names[label], *_counts(found[label])) for label in order])


def _of_objects(images: list[ShownImage], name: str) -> np.ndarray:
    """An attribute of all boxes, once for each object."""
    return np.concatenate([getattr(image, name)[np.unique(image.first)] for image in images])


def _counts(anchors: np.ndarray) -> tuple[str, str, str]:
    return str(len(anchors)), f"{100 * np.mean(anchors > 0):.0f} %", f"{np.median(anchors):g}"
