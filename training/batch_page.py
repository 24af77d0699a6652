"""A page with batches as the network sees them: which boxes have anchors, what is ignored, what is verified.

The batches, the anchors and the assignment are those of a training step. Nothing is learned and nothing is kept.
"""

import dataclasses
import html
import itertools
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import polars as pl
from keras import ops
from tqdm import tqdm

from models.assignment import centre_inside, pairwise_iou, same_boxes
from oid import paths
from oid.page import Table, corners, draw_name, draw_outline, picture_html, scaled, table_html, write_page
from training import loop
from training.batches import Batches
from training.data_set import DataSet
from training.trainer import DetectionTrainer

LONGER_SIDES = (448, 800)  # pixels of a drawn picture: smaller ones are enlarged, larger ones reduced
GREEN, RED, BLACK, WHITE = (0, 130, 40), (205, 20, 20), (30, 30, 30), (255, 255, 255)
HATCH = 12  # pixels from one line to the next
MOST_NAMES = 40  # classes that are listed by name for a part of a picture
SIZE_LIMITS = (16, 32, 64, 128, 256)  # pixels: square root of a box's area
GOOD_IOU = 0.5
STYLE = """
.batch { display: grid; grid-template-columns: repeat(auto-fill, minmax(400px, 1fr)); gap: 18px; align-items: start; }
.batch figure { margin: 0; } h2 { font-size: 17px; margin-top: 1.6em; } figcaption { color: #333; }
.tables { display: flex; flex-wrap: wrap; gap: 0 3em; align-items: start; }
.yes { color: rgb(0, 110, 35); } .no { color: rgb(205, 20, 20); font-weight: 600; }
"""
LEGEND = (
    "<p><span class=yes>Green</span>: anchors learn the box, so many as the number says; <span class=no>red</span>: "
    "none does, so nothing is learned from it. Hatched: an ignored region, where its class, or each class below it, "
    "gives no gradient: a01's, or what the frame leaves of an object. A box with several classes counts once; its name "
    "is the rarest, +2 are two more.</p>"
)
ASSIGNMENTS = {
    "max_iou": "Every box takes its best anchor (max_iou), and an anchor learns the box that it overlaps by at least "
    f"{GOOD_IOU}: red is a box whose best anchor another box took. Numbers: anchors, and the IoU of the best one.",
    "atss": "A box takes the anchors near it that overlap it better than the others there (atss): red is a box that "
    "lost them to other boxes. Numbers: anchors, and the IoU of the best one.",
    "task_aligned": "Anchors are chosen by score and overlap of the network's predictions (task_aligned), here those "
    "of {weights}: they change as it learns. Red is a box that no prediction overlaps, or that lost its anchors to "
    "other boxes. Numbers: anchors, of those whose centre lies in the box.",
}
PLACES = ("top left", "top right", "bottom left", "bottom right")  # of a mosaic's parts, in their order


@dataclasses.dataclass(frozen=True)
class Picture:
    """A picture of a batch, and what a step makes of it.

    Attributes:
        image: uint8 `(size, size, 3)`, RGB.
        boxes: `(n, 4)`, xyxy, normalised.
        labels: `(n,)`, class indices.
        first: `(n,)`, the first row with each row's coordinates: these are one object.
        anchors: `(n,)`, how many anchors learn each box.
        candidates: `(n,)`, how many anchors have their centre in it.
        best_iou: `(n,)`, with any anchor.
        regions: `(m, 4)`, the ignored ones.
        region_labels: `(m,)`, names of which follow those of the classes.
        verified: of each part the classes that are verified there; None where all count as verified.
        frequency: `(classes,)`, boxes of each class in the data set.
        tiles: numbers of the images that it shows, one or a mosaic's four.
        mixed: of those blended in.
    """

    image: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray
    first: np.ndarray
    anchors: np.ndarray
    candidates: np.ndarray
    best_iou: np.ndarray
    regions: np.ndarray
    region_labels: np.ndarray
    verified: list[list[int]] | None
    frequency: np.ndarray
    tiles: list[int]
    mixed: list[int]

    @property
    def objects(self) -> dict[int, list[int]]:
        """The classes of each object, the rarest (so the most specific) first, by its row."""
        rows = {k: self.labels[self.first == k] for k in np.unique(self.first).tolist()}
        return {k: labels[np.argsort(self.frequency[labels], kind="stable")].tolist() for k, labels in rows.items()}

    @property
    def sizes(self) -> np.ndarray:
        """Square roots of the boxes' areas in pixels, `(n,)`."""
        sides = np.maximum(self.boxes[:, 2:] - self.boxes[:, :2], 0)
        return np.sqrt(sides.prod(axis=1)) * len(self.image)


# === What a step makes of a batch ====================================================================================
def steps_to_show(trainer: DetectionTrainer, flags: dict, state: dict, count: int) -> list[tuple[int, int, bool]]:
    """The next steps of the training, and one of its last part where that is another: (step, size, whether last).

    As long as the training's length is not planned each size of the input is shown in turn.
    """
    begin, shown = state["step"], []
    for step in range(begin, begin + count):
        if state["total"]:
            total = loop.planned_at_closing(state)
            size = loop.size_of(step // state["steps"], tuple(trainer.sizes), total=total, seed=flags["seed"])
            shown.append((step, size, step >= loop.close_at(state)))
        else:
            shown.append((step, trainer.sizes[(step - begin) % len(trainer.sizes)], False))
    differs = flags["mosaic"] or flags["mixup"] or flags["resize"] == "letterbox" or len(trainer.sizes) > 1
    if differs and not shown[-1][2]:
        shown.append((begin + count, trainer.sizes[0], True))
    return shown


def look(trainer: DetectionTrainer, batches: Batches, step: int, size: int) -> list[Picture]:
    """The pictures of a batch, by the batch and the assignment of a training step."""
    trainer.look_at(size)
    images, targets = batches.batch(step, size)
    assigned = np.asarray(ops.convert_to_numpy(trainer.assigned(images, targets)))
    frequency = np.bincount(batches.data.objects.labels, minlength=trainer.network.output["classes"].shape[-1])
    return [
        picture_of(trainer, images, targets, assigned, row, frequency, batches.sources(step, row))
        for row in range(len(images))
    ]


def picture_of(
    trainer: DetectionTrainer,
    images: np.ndarray,
    targets: dict[str, np.ndarray],
    assigned: np.ndarray,
    row: int,
    frequency: np.ndarray,
    sources: tuple[list[int], list[int]],
) -> Picture:
    """One row of a batch; the arguments are those of `look` and what its parts give."""
    boxes, labels = targets["boxes"][row : row + 1], targets["labels"][row]
    real = labels >= 0
    anchors, cell_sides = (ops.convert_to_tensor(a) for a in (trainer.anchors.boxes, trainer.anchors.cell_sides))
    gt = ops.convert_to_tensor(boxes)
    same = ops.convert_to_numpy(same_boxes(gt))[0] & real  # rows that are one object have its anchors together
    of_row = np.bincount(assigned[row][assigned[row] >= 0], minlength=len(labels))
    regions, region_labels = (targets.get(name, [[]] * len(images))[row] for name in ("regions", "region_labels"))
    ignored = np.asarray(region_labels) >= 0
    verified = None
    if "verified" in targets:
        whole = targets["parts"][row].any(axis=-1)
        verified = [np.flatnonzero(part).tolist() for part in targets["verified"][row][whole]]
    return Picture(
        image=images[row],
        boxes=boxes[0, real],
        labels=labels[real],
        first=same[real].argmax(axis=1),
        anchors=(same @ of_row)[real],
        candidates=ops.convert_to_numpy(centre_inside(gt, anchors, cell_sides))[0, real].sum(axis=-1),
        best_iou=ops.convert_to_numpy(ops.max(pairwise_iou(gt, anchors), axis=-1))[0, real],
        regions=np.asarray(regions, "float32").reshape(-1, 4)[ignored],
        region_labels=np.asarray(region_labels, "int32")[ignored],
        verified=verified,
        frequency=frequency,
        tiles=sources[0],
        mixed=sources[1],
    )


# === Pictures ========================================================================================================
def draw(picture: Picture, names: list[str]) -> np.ndarray:
    """The picture with its ignored regions hatched and its boxes green where an anchor learns them, red elsewhere.

    Args:
        picture: what to draw.
        names: of the classes, and behind them those of `coarse_names`.
    """
    least, most = LONGER_SIDES
    drawn = scaled(picture.image, min(max(len(picture.image), least), most))
    for box in picture.regions:
        hatch(drawn, box)
    rows = {box.tobytes(): k for k, box in enumerate(picture.regions)}  # several rows may share a rectangle
    for k in rows.values():
        more = np.count_nonzero((picture.regions == picture.regions[k]).all(axis=1)) - 1
        draw_name(drawn, picture.regions[k], f"ignored: {_with_more(names[picture.region_labels[k]], more)}", BLACK)
    objects, sizes = picture.objects, picture.sizes
    order = sorted(objects, key=lambda k: (picture.anchors[k] == 0, -sizes[k]))  # red ones and small ones on top
    for k in order:
        draw_outline(drawn, picture.boxes[k], GREEN if picture.anchors[k] else RED)
    for k in order:
        rarest, more = objects[k][0], len(objects[k]) - 1
        text = f"{_with_more(names[rarest], more)}: {picture.anchors[k]}"
        draw_name(drawn, picture.boxes[k], text, GREEN if picture.anchors[k] else RED)
    return drawn


def _with_more(name: str, more: int) -> str:
    return f"{name} +{more}" if more else name


def hatch(picture: np.ndarray, box: np.ndarray) -> None:
    """Draws diagonal lines over a box, xyxy normalised, and its outline."""
    x0, y0, x1, y1 = np.clip(corners(box, picture), 0, max(picture.shape))
    part = picture[y0 : y1 + 1, x0 : x1 + 1]
    y, x = np.mgrid[y0 : y0 + part.shape[0], x0 : x0 + part.shape[1]]
    place = (x + y) % HATCH
    part[place < 2] = BLACK
    part[(place >= 2) & (place < 4)] = WHITE
    cv2.rectangle(picture, (int(x0), int(y0)), (int(x1), int(y1)), BLACK, 1)


# === The page ========================================================================================================
def show(page: Path, trainer: DetectionTrainer, batches: Batches, flags: dict, settings: dict, state: dict) -> str:
    """Writes the page of `--show_batches` batches, and gives back the sentence that says so.

    Args:
        page: the HTML file.
        trainer: with the weights of the training so far.
        batches: of the training.
        flags: a03's.
        settings: of the run.
        state: of the run, see `training.checkpoints.new_state`.
    """
    names = [entry["name"] for entry in settings["classes"]]
    all_names = names + coarse_names(batches.data, len(names))
    steps = steps_to_show(trainer, flags, state, flags["show_batches"])
    seen, parts = [], []
    sources = {}
    for step, size, last in tqdm(steps, desc="batches", disable=None):
        batches.close_at = step if last else step + 1
        seen.append(look(trainer, batches, step, size))
        sources.update({image: [] for picture in seen[-1] for image in picture.tiles + picture.mixed})
    present = classes_present(batches.data, list(sources), flags, [entry["label"] for entry in settings["classes"]])
    for (step, size, last), pictures in zip(steps, seen, strict=True):
        phase = ", as in the last 15 % of the steps" if last else ""
        parts.append(f"<h2>Step {step}, {size} pixels{phase}</h2><div class=batch>")
        for picture in pictures:
            caption = describe(picture, all_names, batches.data.image_ids, present, flags["assignment"])
            parts.append(f"<figure>{picture_html(draw(picture, all_names), 'training picture')}")
            parts.append(f"<figcaption>{caption}</figcaption></figure>")
        parts.append("</div>")
    everything = list(itertools.chain(*seen))
    left_out = batches.boxes_left_out(range(state["step"], state["step"] + len(steps)))
    sentences = summary(everything, names, left_out, flags)
    new = f"the weights of {flags['init_from']}" if flags["init_from"] else "a new network"
    weights = f"the checkpoint of step {state['step']}" if state["step"] else new
    explained = ASSIGNMENTS[flags["assignment"]].format(weights=weights)
    top = [f"<p>{html.escape(text)}</p>" for text in (*sentences, explained)]
    tables = map(table_html, (size_table(everything), class_table(everything, names)))
    top += [LEGEND, "<div class=tables>", *tables, "</div>"]
    write_page(page, f"Batches of {page.parent.name}", top + parts, style=STYLE)
    return f"{page}: {len(everything)} pictures of {len(steps)} batches; {sentences[0]}"


def coarse_names(data: DataSet, num_classes: int) -> list[str]:
    """What to call the labels of ignored regions that mean the classes below a coarse one."""
    if not data.coarse_names:
        return []
    every = data.region_classes[num_classes:].all(axis=1)
    named = zip(data.coarse_names, every, strict=True)
    return ["every class" if all_classes else f"below {name}" for name, all_classes in named]


def classes_present(data: DataSet, images: list[int], flags: dict, labels: list[str]) -> dict[int, set[int]]:
    """The classes that are in each of some images, by a box, an ignored region of one, or an image-level label."""
    present = {image: {*data.objects.of(image)[1].tolist(), *_boxed_regions(data, image)} for image in images}
    number, index = {data.image_ids[image]: image for image in images}, {label: k for k, label in enumerate(labels)}
    path = paths.level_image_labels(flags["output_path"], flags["level"], "train")
    rows = pl.scan_csv(path, infer_schema=False).filter(pl.col("Confidence") == "1", pl.col("ImageID").is_in(number))
    for image_id, label in rows.select("ImageID", "LabelName").collect().iter_rows():
        if label in index:
            present[number[image_id]].add(index[label])
    return present


def _boxed_regions(data: DataSet, image: int) -> list[int]:
    """Classes of the group-of boxes and depictions of an image."""
    rows = slice(data.regions.offsets[image], data.regions.offsets[image + 1])
    return data.regions.labels[rows][(data.group_of | data.depiction)[rows]].tolist()


def describe(
    picture: Picture, names: list[str], image_ids: list[str], present: dict[int, set[int]], assignment: str
) -> str:
    """What stands below a picture, as HTML: its images, boxes, ignored regions and verified classes."""
    ids = [html.escape(image_ids[image]) for image in picture.tiles]
    lines = [f"mosaic of {', '.join(ids)}" if len(ids) > 1 else f"image {ids[0]}"]
    lines[0] += "".join(f", blended with {html.escape(image_ids[image])}" for image in picture.mixed)
    boxes = []
    for k, labels in picture.objects.items():
        measure = f"of {picture.candidates[k]}" if assignment == "task_aligned" else f"(IoU {picture.best_iou[k]:.2f})"
        count, kind = (picture.anchors[k], "yes") if picture.anchors[k] else ("no anchor", "no")
        boxes.append(f"<span class={kind}>{_listed(labels, names)}: {count} {measure}</span>")
    lines.append(f"boxes: {' · '.join(boxes) or 'none'}")
    if len(picture.regions):
        counts = Counter(names[label] for label in picture.region_labels)
        regions = ", ".join(html.escape(name) + (f" x {n}" if n > 1 else "") for name, n in counts.items())
        lines.append(f"ignored regions: {regions}")
    if picture.verified is None:
        lines.append("all classes count as verified")
    for place, part in enumerate(picture.verified or []):
        where = f"{PLACES[place]} ({ids[place]})" if len(ids) > 1 else "verified"
        there = set().union(*(present[image] for image in (picture.tiles[place], *picture.mixed)))
        kinds = {"present": [c for c in part if c in there], "absent": [c for c in part if c not in there]}
        lines.append(f"{where}: " + "; ".join(f"{kind} {_listed(found, names)}" for kind, found in kinds.items()))
    return "<br>".join(lines)


def _listed(classes: list[int], names: list[str]) -> str:
    more = f" and {len(classes) - MOST_NAMES} more" if len(classes) > MOST_NAMES else ""
    return html.escape(", ".join(names[c] for c in classes[:MOST_NAMES]) or "none") + more


def summary(pictures: list[Picture], names: list[str], left_out: int, flags: dict) -> list[str]:
    """The sentences at the top."""
    anchors, best = (
        np.concatenate([getattr(p, name)[list(p.objects)] for p in pictures]) for name in ("anchors", "best_iou")
    )
    boxes, with_anchor = len(anchors), int(np.count_nonzero(anchors))
    seen = len({label for picture in pictures for label in picture.labels.tolist()})
    share = f"{with_anchor} of {boxes} boxes ({100 * with_anchor / boxes:.1f} %)" if boxes else "no boxes: none"
    sentences = [
        f"{share} have an anchor; {seen} of {len(names)} classes are seen; {left_out} boxes are left out beyond "
        f"--max_gt_boxes {flags['max_gt_boxes']} of a picture."
    ]
    if flags["assignment"] == "max_iou" and (poor := int(np.count_nonzero(best < GOOD_IOU))):
        sentences.append(
            f"{poor} boxes overlap no anchor by {GOOD_IOU}: they learn by their best anchor alone, if no other box "
            "takes it. Where these are many, other anchors would fit better."
        )
    return sentences


def size_table(pictures: list[Picture]) -> Table:
    """Boxes and their anchors by the boxes' size."""
    sizes, anchors = (
        np.concatenate([getattr(p, name)[list(p.objects)] for p in pictures]) for name in ("sizes", "anchors")
    )
    place, rows = np.searchsorted(SIZE_LIMITS, sizes, side="right"), []
    for k in range(len(SIZE_LIMITS) + 1):
        of_size = anchors[place == k]
        if len(of_size):
            rows.append((f"from {(0, *SIZE_LIMITS)[k]}", *_counts(of_size)))
    return Table("Square root of a box's area, in pixels", ("pixels", *COUNTED), rows)


def class_table(pictures: list[Picture], names: list[str]) -> Table:
    """The same by class, those with the largest share without an anchor first, then the most frequent."""
    labels, anchors = (np.concatenate([getattr(p, name) for p in pictures]) for name in ("labels", "anchors"))
    found = {int(label): anchors[labels == label] for label in np.unique(labels)}
    order = sorted(found, key=lambda label: (np.mean(found[label] > 0), -len(found[label])))
    return Table("Classes", ("class", *COUNTED), [(names[label], *_counts(found[label])) for label in order])


COUNTED = ("boxes", "with an anchor", "anchors per box (median)")


def _counts(anchors: np.ndarray) -> tuple[str, str, str]:
    return str(len(anchors)), f"{100 * np.mean(anchors > 0):.0f} %", f"{np.median(anchors):g}"
