"""Which files are the ground truth of a split, by the flags that a06 and a07 share."""

from __future__ import annotations  # what annotations name is imported where it is used: --help need not wait for it

from pathlib import Path
from typing import TYPE_CHECKING

from oid import paths
from oid.files import InputError, require_file

if TYPE_CHECKING:
    from oid.hierarchy import Hierarchy


def find_ground_truth(
    dataset_path: str,
    split: str,
    boxes: str | None,
    image_labels: str | None,
    hierarchy: str | None = None,
    class_descriptions: str | None = None,
) -> tuple[Path, Path | None, Hierarchy | None, dict[str, str] | None]:
    """Box file, image-label file, hierarchy, {label: name} of the class list; prints the choice of files.

    Image-level labels belong to a split: those of the data set are not mixed with boxes from elsewhere. Hierarchy and
    class descriptions belong to the whole data set.
    """
    from oid.annotations import read_class_descriptions
    from oid.hierarchy import read_hierarchy

    default_boxes = paths.box_annotations(dataset_path, split)
    own_boxes = boxes is None or Path(boxes).resolve() == default_boxes.resolve()
    if own_boxes and split == "test" and not default_boxes.is_file():
        raise InputError(
            f"{default_boxes} does not exist, because the test split has no ground truth: "
            'set SPLIT = "validation" in a00_utils_and_constants.py, or give --split or --boxes'
        )
    boxes_path = require_file(boxes or default_boxes, "give --boxes, or the folder of Open Images with --dataset_path")
    print(f"boxes: {boxes_path}")
    default_labels = paths.image_label_annotations(dataset_path, split) if own_boxes else None
    default_hierarchy = paths.annotation_file(dataset_path, paths.HIERARCHY)
    default_classes = paths.evaluated_class_descriptions(dataset_path)
    labels_path = choose_file(
        "image_labels", image_labels, default_labels, "only the classes of an image's boxes count"
    )
    hierarchy_path = choose_file("hierarchy", hierarchy, default_hierarchy, "boxes are not copied to ancestor classes")
    classes_path = choose_file(
        "class_descriptions", class_descriptions, default_classes, "every class that occurs counts"
    )
    return (
        boxes_path,
        labels_path,
        read_hierarchy(hierarchy_path) if hierarchy_path else None,
        read_class_descriptions(classes_path) if classes_path else None,
    )


def choose_file(flag: str, given: str | None, default: Path | None, without: str) -> Path | None:
    """The file that was given, else the default where it exists, else None; "none" is None. Prints the choice."""
    if given not in (None, "none"):
        path = require_file(given, f"give another file with --{flag}, or --{flag} none")
    else:
        path = default if given is None and default is not None and default.is_file() else None
    print(f"{flag}: {path if path else f'none, so {without}'}")
    return path
