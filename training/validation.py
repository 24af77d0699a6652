"""The Open Images metric on a level's own classes, while the network trains."""

import dataclasses
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from models.detector import Detector
from oid.files import InputError
from oid.images.letterbox import letterbox_to_square, warp_to_square
from oid.images.read import read_image
from oid.metric.challenge import Detections, GroundTruth, evaluate
from training.data_set import DataSet

BATCH = 16


def ground_truth(data: DataSet) -> GroundTruth:
    """What the metric wants to know of a data set: its boxes, its group-of boxes, its verified classes.

    Regions that are ignored for another reason than group-of are left out: the metric has no such thing.
    """
    order = np.argsort(data.image_ids, kind="stable")
    rank = np.empty(len(order), "int64")
    rank[order] = np.arange(len(order))
    object_image = np.repeat(np.arange(len(data)), np.diff(data.objects.offsets))
    region_image = np.repeat(np.arange(len(data)), np.diff(data.regions.offsets))
    group = data.group_of
    return GroundTruth(
        image_ids=tuple(np.array(data.image_ids, dtype=object)[order]),
        box_image=rank[np.concatenate([object_image, region_image[group]])],
        box_class=np.concatenate([data.objects.labels, data.regions.labels[group]]).astype("int64"),
        boxes=np.concatenate([data.objects.boxes, data.regions.boxes[group]]).astype("float64"),
        box_group_of=np.repeat([False, True], [len(data.objects.labels), int(group.sum())]),
        label_image=rank[data.verified[:, 0]],
        label_class=data.verified[:, 1],
    )


def make_validation(
    data: DataSet,
    settings: dict,
    *,
    orientation: str,
    score_threshold: float = 0.01,
    cache_bytes: int = 2**30,
    max_bad_images: int = 0,
) -> Callable[[Detector], float]:
    """Returns a function from a detector to its mAP at IoU 0.5 on `data`.

    Pictures are kept in memory up to `cache_bytes`; the others are read each time. Those that cannot be read are said
    once and not measured; more of them than `max_bad_images` raise an InputError.
    """
    truth = ground_truth(data)
    image_of = {image_id: index for index, image_id in enumerate(truth.image_ids)}
    image = np.array([image_of[image_id] for image_id in data.image_ids])
    side = settings["image_size"]
    to_square = letterbox_to_square if settings["preprocessing"]["resize"] == "letterbox" else warp_to_square
    room = cache_bytes // (side * side * 3)
    cache: dict[int, tuple[np.ndarray, tuple[int, int]]] = {}
    bad: set[int] = set()

    def square(index: int) -> tuple[np.ndarray, tuple[int, int]]:
        if index in cache:
            return cache[index]
        try:
            picture = read_image(data.paths[index], orientation=orientation, minimum_side=side)
        except InputError as error:
            if index not in bad:
                bad.add(index)
                if len(bad) > max_bad_images:
                    raise
                print(f"{error}; it is not measured ({len(bad)} of at most {max_bad_images})", flush=True)
            return np.zeros((side, side, 3), "uint8"), (side, side)
        found = to_square(picture, side), picture.shape[:2]
        if index < room:
            cache[index] = found
        return found

    def validate(detector: Detector) -> float:
        """The mAP of one detector; 0 where no class has ground truth."""
        found = []
        with ThreadPoolExecutor() as pool:
            for begin in range(0, len(data), BATCH):
                batch = np.zeros((BATCH, side, side, 3), "uint8")  # always the same shape: nothing is compiled twice
                sizes = [(side, side)] * BATCH
                indices = range(begin, min(begin + BATCH, len(data)))
                for row, (picture, size) in enumerate(pool.map(square, indices)):
                    batch[row], sizes[row] = picture, size
                found += detector.detect(batch, sizes=sizes, score_threshold=score_threshold)[: len(indices)]
        no_boxes = np.zeros((0, 4)), np.zeros(0), np.zeros(0, "int64")
        found = [no_boxes if index in bad else boxes for index, boxes in enumerate(found)]
        detections = Detections(
            image=np.repeat(image, [len(boxes) for boxes, _, _ in found]).astype("int64"),
            class_index=np.concatenate([labels for _, _, labels in found]).astype("int64"),
            scores=np.concatenate([scores for _, scores, _ in found]).astype("float64"),
            boxes=np.concatenate([boxes for boxes, _, _ in found]).astype("float64").reshape(-1, 4),
        )
        readable = _without(truth, image[sorted(bad)]) if bad else truth
        score = evaluate(readable, detections, num_classes=len(settings["classes"])).mean_average_precision
        return 0.0 if np.isnan(score) else float(score)

    return validate


def _without(truth: GroundTruth, images: Collection[int]) -> GroundTruth:
    """The ground truth as if these images had neither boxes nor labels: without detections they count nowhere."""
    boxes, labels = ~np.isin(truth.box_image, images), ~np.isin(truth.label_image, images)
    kept = {name: getattr(truth, name)[boxes] for name in ("box_image", "box_class", "boxes", "box_group_of")}
    kept |= {name: getattr(truth, name)[labels] for name in ("label_image", "label_class")}
    return dataclasses.replace(truth, **kept)
