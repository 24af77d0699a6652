"""Generates a small data set in the layout of Open Images: shapes drawn on photographs and textures.

Writes: DATASET/{train,validation,test}/*.jpg and DATASET/annotations/ with the files of Open Images V4.
Takes:  10 s for 600 images.

    python -m demo.make_data_set --dataset_path demo_data/data_set
    python -m demo.make_data_set --dataset_path demo_data/tiny --images 30
"""

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

from demo import backgrounds, scenes, shapes
from oid import paths
from oid.annotations import write_class_descriptions
from oid.columns import BOX_COLUMNS
from oid.command_line import check_flag, run_script
from oid.files import InputError, replacing_folder
from oid.hierarchy import Hierarchy
from oid.machine import usable_cores

VERSION = 1  # increase it when the generated pixels or rows change
MARK = "generated_by_demo.json"  # holds the parameters of a generated data set

ROOT = "/m/0bl9f"  # "Entity" in Open Images, which is not a class
LABELS = {
    "Plain shape": "/m/0pln_",
    "Round shape": "/m/0rnd_",
    "Disc": "/m/0dsc_",
    "Ring": "/m/0rng_",
    "Polygon": "/m/0plg_",
    "Triangle": "/m/0trg_",
    "Star": "/m/0str_",
    "Quadrilateral": "/m/0qdr_",
    "Square": "/m/0sqr_",
    "Frame": "/m/0frm_",
    "Symbol": "/m/0smb_",
    "Cross": "/m/0crs_",
    "Heart": "/m/0hrt_",
    "Patterned shape": "/m/0ptt_",
    "Striped disc": "/m/0stp_",
    "Chequered square": "/m/0chq_",
}
TREE = {  # Star has two parents
    "Plain shape": {
        "Round shape": {"Disc": {}, "Ring": {}},
        "Polygon": {"Triangle": {}, "Star": {}, "Quadrilateral": {"Square": {}, "Frame": {}}},
    },
    "Symbol": {"Cross": {}, "Heart": {}, "Star": {}},
    "Patterned shape": {"Striped disc": {}, "Chequered square": {}},
}
PARTS = {"Chequered square": ("Square",)}  # `Part` edges of the hierarchy, which no rule follows
LEAVES = [LABELS[name] for name in shapes.SHAPES]

PARENT_ONLY_SHARE = 0.02  # of the boxes get the parent's label, as from an annotator who cannot tell the child
PARTLY_VERIFIED_SHARE = 0.25  # of the images have only 60 % of their absent classes verified
UNVERIFIED_SHARE = 0.04


def main(
    *,
    dataset_path: str = "demo_data/data_set",
    images: int = 600,
    seed: int = 0,
    unverified_share: float = UNVERIFIED_SHARE,
) -> None:
    """Puts a sixth of the images into validation, a thirtieth into test (without annotations), the rest into train.

    Args:
        dataset_path: the folder to make; an existing folder is never overwritten.
        images: number of images; at least 30.
        seed: the same seed gives the same files, byte for byte.
        unverified_share: share of the images with several classes in which one visible class is not annotated: it has
            no boxes and no image-level label.
    """
    target = Path(dataset_path)
    check_flag(bool(target.name), "dataset_path", target, "the name of a new folder, such as demo_data/data_set")
    check_flag(images >= 30, "images", images, "at least 30, for three splits")
    check_flag(seed >= 0, "seed", seed, "0 or more")
    check_flag(0 <= unverified_share <= 1, "unverified_share", unverified_share, "a number from 0 to 1")
    parameters = {"images": images, "seed": seed, "unverified_share": unverified_share, "version": VERSION}
    if is_there(target, parameters):
        print(f"{target} is already there: {images} images, seed {seed}")
        return
    with replacing_folder(target) as folder:
        counts = write_data_set(folder, images, seed, unverified_share)
        (folder / MARK).write_text(json.dumps(parameters) + "\n")
    print(f"{target}: " + "; ".join(counts))


def is_there(target: Path, parameters: dict[str, float]) -> bool:
    """Says whether `target` was generated from these parameters.

    Raises:
        InputError: the folder was generated from other parameters, or not by this script.
    """
    if not target.exists() or (target.is_dir() and not any(target.iterdir())):
        return False
    try:
        found = json.loads((target / MARK).read_text())
    except (OSError, ValueError):
        found = "something else"
    if found != parameters:
        raise InputError(f"{target} was made from {found}, not {parameters}: remove it or give another --dataset_path")
    return True


def write_data_set(folder: Path, images: int, seed: int, unverified_share: float) -> list[str]:
    """Writes images and annotations; returns a sentence per split."""
    sizes = {"validation": images // 6, "test": images // 30}
    sizes = {"train": images - sum(sizes.values()), **sizes}
    (folder / "annotations").mkdir()
    tree = json.dumps(nested_hierarchy(), indent=4)
    paths.annotation_file(folder, paths.HIERARCHY).write_text(tree + "\n")
    classes = dict(sorted((label, name) for name, label in LABELS.items()))
    write_class_descriptions(paths.annotation_file(folder, paths.CLASS_DESCRIPTIONS), classes)
    photos = backgrounds.photographs()
    counts = []
    for split, count in sizes.items():
        annotations = _write_images(folder / split, count, seed, unverified_share, photos)
        if split == "test":
            counts.append(f"{split} {count} images without annotations")
            continue
        boxes = [line for image_boxes, _ in annotations for line in image_boxes]
        labels = [line for _, image_labels in annotations for line in image_labels]
        files = ((paths.box_annotations, BOX_COLUMNS, boxes), (paths.image_label_annotations, BOX_COLUMNS[:4], labels))
        for place, columns, lines in files:
            place(folder, split).write_text("\n".join([",".join(columns), *lines]) + "\n")
        counts.append(f"{split} {count} images, {len(boxes)} boxes, {len(labels)} image-level labels")
    return counts


def nested_hierarchy() -> dict:
    """The class tree in the nested form of Open Images: `LabelName`, `Subcategory`, `Part`."""

    def node(name: str, children: dict) -> dict:
        inner = {"LabelName": LABELS[name]}
        if children:
            inner["Subcategory"] = [node(*child) for child in children.items()]
        if name in PARTS:
            inner["Part"] = [{"LabelName": LABELS[part]} for part in PARTS[name]]
        return inner

    return {"LabelName": ROOT, "Subcategory": [node(*child) for child in TREE.items()]}


HIERARCHY = Hierarchy(nested_hierarchy())


def leaves_below(label: str) -> set[str]:
    """The leaf classes below a class, or the class itself if it is a leaf."""
    return {label, *HIERARCHY.descendants(label)} & set(LEAVES)


def _write_images(
    folder: Path, count: int, seed: int, unverified_share: float, photos: list[np.ndarray]
) -> list[tuple[list[str], list[str]]]:
    """Draws and writes the images of a split; returns their annotations, sorted by image id."""
    folder.mkdir()

    def write(number: int) -> tuple[str, tuple[list[str], list[str]]]:
        digest = hashlib.sha256(f"{VERSION} {seed} {folder.name} {number}".encode()).hexdigest()
        rng = np.random.default_rng(int(digest[16:], 16))  # one per image, so the order of the threads is irrelevant
        picture, objects = scenes.scene(rng, photos)
        encoded = cv2.imencode(".jpg", picture[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 90])[1]
        (folder / f"{digest[:16]}.jpg").write_bytes(encoded.tobytes())
        return digest[:16], annotate(rng, digest[:16], objects, unverified_share)

    with ThreadPoolExecutor(usable_cores()) as pool:
        progress = tqdm(pool.map(write, range(count)), total=count, desc=folder.name, unit="image", leave=False)
        return [annotation for _, annotation in sorted(progress)]


def annotate(
    rng: np.random.Generator, image_id: str, objects: list[scenes.SceneObject], unverified_share: float
) -> tuple[list[str], list[str]]:
    """Imitates the annotators: chooses the boxes and the classes that are verified as present or absent.

    As in Open Images, a class has boxes only if it is verified as present, and then all its objects have one. Returns
    the lines of the two CSV files.
    """
    drawn = [LABELS[thing.name] for thing in objects]
    unverified = drawn[-1] if len(set(drawn)) > 1 and rng.random() < unverified_share else None
    rows = []  # the label in each object's box row, and the object
    for label, thing in zip(drawn, objects, strict=True):
        parent_only = drawn.count(label) == 1 and rng.random() < PARENT_ONLY_SHARE
        if label != unverified:
            rows.append((HIERARCHY.ancestors(label)[0] if parent_only else label, thing))
    positive = {label for label, _ in rows}
    possible = set(drawn).union(*map(leaves_below, positive))
    negative = [label for label in LEAVES if label not in possible]
    if rng.random() < PARTLY_VERIFIED_SHARE:
        negative = [label for label in negative if rng.random() < 0.6]
    negative = _with_inner_classes(rng, negative)
    labels = dict.fromkeys(positive, 1) | dict.fromkeys(negative, 0)
    return (
        [_box_line(image_id, label, thing) for label, thing in rows],
        [f"{image_id},verification,{label},{labels[label]}" for label in sorted(labels)],
    )


def _with_inner_classes(rng: np.random.Generator, absent: list[str]) -> list[str]:
    """Replaces the leaves of an inner class by the class itself, for a third of the classes with all leaves absent."""
    for label in LABELS.values():
        leaves = leaves_below(label)
        if label not in LEAVES and leaves <= set(absent) and rng.random() < 1 / 3:
            absent = [leaf for leaf in absent if leaf not in leaves] + [label]
    return absent


def _box_line(image_id: str, label: str, thing: scenes.SceneObject) -> str:
    x_min, y_min, x_max, y_max = thing.box
    corners = ",".join(f"{value:.6f}" for value in (x_min, x_max, y_min, y_max))
    return f"{image_id},xclick,{label},1,{corners},{thing.occluded:d},{thing.truncated:d},{thing.group_of:d},0,0"


if __name__ == "__main__":
    run_script(main)
