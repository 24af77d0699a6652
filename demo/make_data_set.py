"""Generates a small data set in Open Images layout: shapes to detect, drawn on photographs and textures.

Writes: DATASET/{train,validation,test}/*.jpg and DATASET/annotations/ with the files of Open Images V4.
Takes: 600 images 10 s.

    python -m demo.make_data_set --dataset_path demo_data/data_set
    python -m demo.make_data_set --dataset_path demo_data/tiny --images 30
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

from demo import backgrounds, scenes, shapes
from oid import paths
from oid.command_line import run_script
from oid.files import InputError
from oid.machine import usable_cores

VERSION = 1  # of the generator: another number for other pixels or rows
MARK = "generated_by_demo.json"  # the file that says that a folder was made here, and from which parameters

ROOT = "/m/0bl9f"  # Open Images' "Entity", which is not a class
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
PARTS = {"Chequered square": ("Square",)}  # the hierarchy's `Part` edges, which no rule follows

BOX_COLUMNS = (
    "ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax,IsOccluded,IsTruncated,IsGroupOf,IsDepiction,IsInside"
)
LABEL_COLUMNS = "ImageID,Source,LabelName,Confidence"
PARENT_ONLY_SHARE = 0.02  # of the boxes: labelled with the parent, as annotators do who cannot tell which child it is
PARTLY_VERIFIED_SHARE = 0.25  # of the images: 40 % of the absent classes were not looked for
UNVERIFIED_SHARE = 0.04


@dataclass(frozen=True)
class _Image:
    """The annotation of one image, as lines of the two CSV files."""

    boxes: list[str]
    labels: list[str]


def main(
    *,
    dataset_path: str = "demo_data/data_set",
    images: int = 600,
    seed: int = 0,
    unverified_share: float = UNVERIFIED_SHARE,
) -> None:
    """Of `images`, a sixth is for validation and a thirtieth for test, without annotations; the rest is for training.

    Args:
        dataset_path: the folder to make; one that exists already is never overwritten.
        images: how many images in all; at least 30.
        seed: the same seed gives the same files, byte for byte.
        unverified_share: of the images with several classes, so many have one that was not looked for: it is to be
            seen, but has no boxes and is not verified.
    """
    target = Path(dataset_path)
    parameters = {"images": images, "seed": seed, "unverified_share": unverified_share, "version": VERSION}
    if not target.name:
        raise InputError(f"--dataset_path {target} is no name of a new folder: give one, such as demo_data/data_set")
    if images < 30:
        raise InputError(f"--images {images} is too few for three splits: give at least 30")
    if seed < 0:
        raise InputError(f"--seed {seed} is negative: give 0 or more")
    if not 0 <= unverified_share <= 1:
        raise InputError(f"--unverified_share {unverified_share} is no share: give a number from 0 to 1")
    if is_there(target, parameters):
        print(f"{target} is already there: {images} images, seed {seed}")
        return
    temporary = target.with_name(f".{os.getpid()}.{target.name}")
    try:
        counts = write_data_set(temporary, **split_sizes(images), seed=seed, unverified_share=unverified_share)
        (temporary / MARK).write_text(json.dumps(parameters) + "\n")
        os.replace(temporary, target)  # complete or not there at all
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    print(f"{target}: " + "; ".join(counts))


def is_there(target: Path, parameters: dict[str, float]) -> bool:
    """Whether `target` was made from these parameters.

    Raises:
        InputError: it exists, and was made from others or not by this generator.
    """
    if not target.exists() or (target.is_dir() and not any(target.iterdir())):
        return False
    try:
        found = json.loads((target / MARK).read_text())
    except (OSError, ValueError):
        raise InputError(f"{target} exists and was not made by this generator: give another --dataset_path") from None
    if found != parameters:
        raise InputError(f"{target} was made from {found}, not {parameters}: remove it or give another --dataset_path")
    return True


def split_sizes(images: int) -> dict[str, int]:
    """How many images each split gets."""
    validation, test = images // 6, images // 30
    return {"train": images - validation - test, "validation": validation, "test": test}


def write_data_set(
    folder: Path, *, train: int, validation: int, test: int, seed: int, unverified_share: float
) -> list[str]:
    """Writes images and annotations; returns a sentence per split."""
    (folder / "annotations").mkdir(parents=True)
    tree = json.dumps(hierarchy(), indent=4)
    paths.annotation_file(folder, paths.HIERARCHY).write_text(tree + "\n")
    names = sorted((label, name) for name, label in LABELS.items())
    _write_lines(paths.annotation_file(folder, paths.CLASS_DESCRIPTIONS), (f"{a},{b}" for a, b in names))
    photos = backgrounds.photographs()
    counts = []
    for split, count in {"train": train, "validation": validation, "test": test}.items():
        annotations = _write_images(folder / split, count, seed, unverified_share, photos)
        boxes = [line for image_id in sorted(annotations) for line in annotations[image_id].boxes]
        labels = [line for image_id in sorted(annotations) for line in annotations[image_id].labels]
        if split == "test":
            counts.append(f"{split} {count} images without annotations")
            continue
        _write_lines(paths.box_annotations(folder, split), [BOX_COLUMNS, *boxes])
        _write_lines(paths.image_label_annotations(folder, split), [LABEL_COLUMNS, *labels])
        counts.append(f"{split} {count} images, {len(boxes)} boxes, {len(labels)} image-level labels")
    return counts


def hierarchy() -> dict:
    """The class tree in the nested form of Open Images: `LabelName`, `Subcategory`, `Part`."""

    def node(name: str, children: dict) -> dict:
        inner = {"LabelName": LABELS[name]}
        if children:
            inner["Subcategory"] = [node(*child) for child in children.items()]
        if name in PARTS:
            inner["Part"] = [{"LabelName": LABELS[part]} for part in PARTS[name]]
        return inner

    return {"LabelName": ROOT, "Subcategory": [node(*child) for child in TREE.items()]}


def leaves_below(name: str, tree: dict = TREE) -> set[str]:
    """The leaf classes at or below a class."""
    found = set()
    for child, children in tree.items():
        if child == name:
            found |= set().union(*(leaves_below(c, children) for c in children)) if children else {name}
        else:
            found |= leaves_below(name, children)
    return found


def parent(name: str, tree: dict = TREE) -> str | None:
    """The first parent of a class, None below the root."""
    for child, children in tree.items():
        if name in children:
            return child
        deeper = parent(name, children)
        if deeper:
            return deeper
    return None


def _write_images(
    folder: Path, count: int, seed: int, unverified_share: float, photos: list[np.ndarray]
) -> dict[str, _Image]:
    """Draws and writes a split's images; returns {image id: annotation}."""
    folder.mkdir()

    def write(number: int) -> tuple[str, _Image]:
        digest = hashlib.sha256(f"{VERSION} {seed} {folder.name} {number}".encode()).hexdigest()
        rng = np.random.default_rng(int(digest[16:], 16))  # its own for each image, so threads do not matter
        picture, objects = scenes.scene(rng, photos)
        encoded = cv2.imencode(".jpg", picture[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 90])[1]
        (folder / f"{digest[:16]}.jpg").write_bytes(encoded.tobytes())
        return digest[:16], annotate(rng, digest[:16], objects, unverified_share)

    with ThreadPoolExecutor(usable_cores()) as pool:
        return dict(tqdm(pool.map(write, range(count)), total=count, desc=folder.name, unit="image", leave=False))


def annotate(
    rng: np.random.Generator,
    image_id: str,
    objects: list[scenes.SceneObject],
    unverified_share: float = UNVERIFIED_SHARE,
) -> _Image:
    """Decides what the annotators saw: the boxes, and which classes they verified as present or absent.

    As in Open Images, a class is boxed only where it is verified as present, then exhaustively.
    """
    names = [thing.name for thing in objects]
    present = dict.fromkeys(names)
    unverified = set()
    if len(present) > 1 and rng.random() < unverified_share:
        unverified.add(names[-1])
    boxed = {}  # object's number: the class that its box names
    for number, name in enumerate(names):
        alone = names.count(name) == 1 and parent(name) is not None
        boxed[number] = parent(name) if alone and rng.random() < PARENT_ONLY_SHARE else name
    positive = {boxed[n] for n in boxed if names[n] not in unverified}
    doubtful = {leaf for name in positive for leaf in leaves_below(name)} | unverified
    negative = [name for name in shapes.SHAPES if name not in present and name not in doubtful]
    if rng.random() < PARTLY_VERIFIED_SHARE:
        negative = [name for name in negative if rng.random() < 0.6]
    negative = _with_inner_classes(rng, negative)
    boxes = [_box_line(image_id, boxed[n], thing) for n, thing in enumerate(objects) if thing.name not in unverified]
    labels = {LABELS[name]: 1 for name in positive} | {LABELS[name]: 0 for name in negative}
    return _Image(boxes, [f"{image_id},verification,{label},{labels[label]}" for label in sorted(labels)])


def _with_inner_classes(rng: np.random.Generator, absent: list[str]) -> list[str]:
    """For a third of the inner classes without any leaf in the image, says so in one label instead of one per leaf."""
    for name in LABELS:
        leaves = leaves_below(name)
        if name not in shapes.SHAPES and leaves <= set(absent) and rng.random() < 1 / 3:
            absent = [leaf for leaf in absent if leaf not in leaves] + [name]
    return absent


def _box_line(image_id: str, name: str, thing: scenes.SceneObject) -> str:
    x_min, y_min, x_max, y_max = thing.box
    flags = (thing.occluded, thing.truncated, thing.group_of, False, False)
    values = [f"{value:.6f}" for value in (x_min, x_max, y_min, y_max)] + [str(int(flag)) for flag in flags]
    return ",".join([image_id, "xclick", LABELS[name], "1", *values])


def _write_lines(path: Path, lines: Iterable[str]) -> None:
    path.write_text("".join(line + "\n" for line in lines))


if __name__ == "__main__":
    run_script(main)
