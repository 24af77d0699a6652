"""A split of a level, as a01 wrote it, in arrays: which images there are, where their files lie, what is in them."""

import dataclasses
import functools
from pathlib import Path

import numpy as np
import polars as pl

from oid import paths
from oid.annotations import read_class_descriptions
from oid.files import InputError, require_file
from oid.images.find import find_images
from training.verified_labels import CoarseClasses, coarse_classes

COORDINATES = ("XMin", "YMin", "XMax", "YMax")
DEPICTION = "depiction"  # the one reason for an ignored region that is not a01's
BELOW = "ancestor_class"  # the one reason whose label stands for the classes below it


@dataclasses.dataclass(frozen=True)
class Boxes:
    """Boxes of many images in one block: those of image `i` are rows `offsets[i]` to `offsets[i + 1]`.

    Attributes:
        offsets: int64 `(images + 1,)`.
        boxes: float32 `(boxes, 4)`, xyxy, normalised.
        labels: int32 `(boxes,)`, class indices.
    """

    offsets: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray

    def of(self, image: int) -> tuple[np.ndarray, np.ndarray]:
        """The `(n, 4)` boxes and `(n,)` labels of one image."""
        rows = slice(self.offsets[image], self.offsets[image + 1])
        return self.boxes[rows], self.labels[rows]

    def only(self, chosen: np.ndarray) -> "Boxes":
        """Some of the boxes, those where bool `(boxes,)` is true."""
        before = np.concatenate([[0], np.cumsum(chosen)])
        return Boxes(before[self.offsets], self.boxes[chosen], self.labels[chosen])

    @property
    def image(self) -> np.ndarray:
        """The image of each box, int64 `(boxes,)`, ascending."""
        return np.repeat(np.arange(len(self.offsets) - 1), np.diff(self.offsets))


@dataclasses.dataclass(frozen=True)
class DataSet:
    """The images of one split with their boxes, ignored regions and verified classes.

    Attributes:
        image_ids: ids, in the order of a01's box file.
        paths: the files of these images.
        objects: what is to be found.
        regions: where classes give no gradient. A label below the number of classes is that class; label classes + k
            means every class below the k-th coarse one.
        group_of: bool `(regions,)`, which of them are group-of boxes.
        depiction: bool `(regions,)`, which of them are boxes left out because they show a depiction.
        verified: `(images, classes)` pairs `(image, class)`, int64 `(n, 2)`: image-level labels, positive and negative.
        has_image_labels: whether the split has any image-level label at all, in whichever image.
        missing: number of images left out because they have no file, or a damaged one.
        region_classes: float32 `(classes + coarse, classes)`: row l is 1 for the classes that a region's label l means;
            the same for every split of a level. None = each label is the class itself.
        coarse_names: of the coarse classes.
    """

    image_ids: list[str]
    paths: list[Path]
    objects: Boxes
    regions: Boxes
    group_of: np.ndarray
    depiction: np.ndarray
    verified: np.ndarray
    has_image_labels: bool
    missing: int
    region_classes: np.ndarray | None = None
    coarse_names: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.image_ids)

    @functools.cached_property
    def depictions(self) -> Boxes:
        """Those of the regions that are depictions."""
        return self.regions.only(self.depiction)

    def verified_of(self, image: int) -> np.ndarray:
        """The classes that people have verified in an image, int32 `(n,)`, ascending.

        Present or absent by an image-level label, or present by a box: an ordinary, a group-of or a depiction's one.
        Of the other classes nobody knows whether the image shows them.
        """
        offsets, classes = self._verified_classes
        return classes[offsets[image] : offsets[image + 1]]

    @functools.cached_property
    def _verified_classes(self) -> tuple[np.ndarray, np.ndarray]:
        """Offsets `(images + 1,)` and classes, as in `Boxes`: images x classes would be far more than memory."""
        boxed = self.group_of | self.depiction
        image, classes = distinct_pairs(
            np.concatenate([self.verified[:, 0], self.objects.image, self.regions.image[boxed]]),
            np.concatenate([self.verified[:, 1], self.objects.labels, self.regions.labels[boxed]]),
        )
        return _offsets(image, len(self)), classes.astype("int32")


def distinct_pairs(image: np.ndarray, classes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Each pair `(image, class)` once: the images and the classes, int64 `(n,)`, by image, then by class."""
    width = int(classes.max(initial=0)) + 1
    keys = image.astype("int64") * width
    keys += classes
    keys.sort()
    keys = keys[np.diff(keys, prepend=-1) > 0]
    return np.divmod(keys, width)


def read_classes(output_path: str | Path, level: str) -> dict[str, str]:
    """The classes of a level, `{label: name}` in the order of the network's outputs.

    Raises:
        InputError: a01 has not made the level.
    """
    path = paths.level_class_descriptions(output_path, level)
    require_file(path, f"run a01_create_training_files.py with --levels {level}")
    return read_class_descriptions(path)


def read_data_set(
    dataset_path: str | Path,
    output_path: str | Path,
    level: str,
    split: str,
    *,
    skip_missing: bool = False,
    at_most: int = 0,
    leave_out_depictions: bool = False,
) -> DataSet:
    """Reads a split of a level.

    Args:
        dataset_path: DATASET, with the images of the split below it.
        output_path: OUTPUT, with a01's files.
        level: as a01 names it ("1", "2", "all", "rare").
        split: "train" or "validation".
        skip_missing: leave out images that have no file, or that a02 lists as damaged, instead of refusing to start.
        at_most: take so many images, chosen at random but always the same; 0 = all.
        leave_out_depictions: boxes of drawings and the like (IsDepiction 1; -1 is unknown and counts as none) become
            ignored regions: neither to be found nor background.

    Raises:
        InputError: a file of a01 is missing or damaged, or images are missing; or the hierarchy does not tell what an
            ignored region means.
    """
    labels = list(read_classes(output_path, level))
    box_file = paths.level_boxes(output_path, level, split)
    rows = _read(box_file, (*COORDINATES, "LabelName", "IsDepiction"))
    region_file = paths.level_ignored_regions(output_path, level, split)
    regions = _read(region_file, (*COORDINATES, "LabelName", "Reason"))
    image_labels = _read(paths.level_image_labels(output_path, level, split), ("LabelName",))

    listed = pl.concat([rows["ImageID"], regions["ImageID"]]).unique(maintain_order=True).to_list()
    files = _usable_files(dataset_path, output_path, split, listed, box_file, skip_missing=skip_missing)
    image_ids = [image_id for image_id in listed if image_id in files]
    if 0 < at_most < len(image_ids):
        chosen = np.random.default_rng(0).permutation(len(image_ids))[:at_most]
        image_ids = [image_ids[i] for i in sorted(chosen)]

    index = pl.DataFrame({"ImageID": pl.Series(image_ids, dtype=pl.String), "image": np.arange(len(image_ids))})
    classes = pl.DataFrame({"LabelName": labels, "class": np.arange(len(labels), dtype="int32")})
    objects = rows.filter(pl.col("LabelName") != "")  # the others are negatives
    if leave_out_depictions:
        depictions = _depictions(objects, box_file)
        objects = objects.filter(pl.col("IsDepiction") != "1")
        regions = pl.concat([regions, depictions.select(regions.columns)])
    coarse = coarse_classes(dataset_path, labels)
    region_rows = _indexed(*_meanings(regions, labels, coarse, region_file, dataset_path), index)
    return DataSet(
        image_ids=image_ids,
        paths=[files[image_id] for image_id in image_ids],
        objects=_boxes(_indexed(objects, classes, index), len(image_ids), box_file),
        regions=_boxes(region_rows, len(image_ids), region_file),
        group_of=(region_rows["Reason"] == "group_of").to_numpy(),
        depiction=(region_rows["Reason"] == DEPICTION).to_numpy(),
        verified=_indexed(image_labels, classes, index).select("image", "class").to_numpy().astype("int64"),
        has_image_labels=len(image_labels) > 0,
        missing=len(listed) - len(files),
        region_classes=None if coarse is None else np.concatenate([np.eye(len(labels), dtype="float32"), coarse.below]),
        coarse_names=() if coarse is None else coarse.names,
    )


def _meanings(
    regions: pl.DataFrame, labels: list[str], coarse: CoarseClasses | None, path: Path, dataset_path: str | Path
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """The regions with the column `below`, and with LabelName and that what each means, as index in `class`.

    Raises:
        InputError: a coarse label of which nobody knows what is below it.
    """
    hierarchy = paths.annotation_file(dataset_path, paths.HIERARCHY)
    below = pl.col("Reason") == BELOW
    found = regions.filter(below)["LabelName"].unique(maintain_order=True).to_list()
    if found and coarse is None:
        raise InputError(f"{path} has regions of classes below others, and {hierarchy} does not exist: put it there")
    above = () if coarse is None else coarse.labels
    if unexplained := [label for label in found if label not in above]:
        if not set(found) <= set(labels):
            raise InputError(
                f"{path} has a region of the classes below {unexplained[0]}, which has no class of the level below it "
                f"in {hierarchy}: run a01_create_training_files.py again"
            )
        below = pl.lit(False)  # an earlier a01's: it wrote a row for each class below, whose label is that class
    meanings = {
        "LabelName": [*labels, *above],
        "below": np.arange(len(labels) + len(above)) >= len(labels),
        "class": np.arange(len(labels) + len(above), dtype="int32"),
    }
    return regions.with_columns(below=below), pl.DataFrame(meanings)


def _usable_files(
    dataset_path: str | Path,
    output_path: str | Path,
    split: str,
    listed: list[str],
    box_file: Path,
    *,
    skip_missing: bool,
) -> dict[str, Path]:
    """The files of the images `listed` in `box_file` that are there and that a02 could read.

    Raises:
        InputError: some are missing or damaged and `skip_missing` is false, or there is none at all.
    """
    files = find_images(Path(dataset_path) / split)
    damaged = _damaged(output_path, split)
    missing = [image_id for image_id in listed if image_id not in files]
    bad = [image_id for image_id in listed if image_id in files and files[image_id].parts[-2:] in damaged]
    if bad and not skip_missing:
        raise InputError(
            f"{paths.image_problems(output_path, split)} lists {len(bad)} images of {box_file}, the first is "
            f"{files[bad[0]]}: replace them and run a02 again, or train without them by --skip_missing"
        )
    if missing and not skip_missing:
        raise InputError(
            f"{len(missing)} of {len(listed)} images of {box_file} have no file below {Path(dataset_path) / split}, "
            f"the first is {missing[0]}: download them, or train without them by --skip_missing"
        )
    bad_ids = {*bad, *missing}
    usable = {image_id: files[image_id] for image_id in listed if image_id not in bad_ids}
    if listed and not usable:
        raise InputError(
            f"{box_file} names no image that lies below {Path(dataset_path) / split}: check --dataset_path"
        )
    return usable


def _depictions(objects: pl.DataFrame, path: Path) -> pl.DataFrame:
    """The boxes of drawings, photographs on posters and the like, as rows of ignored regions."""
    odd = objects.filter(~pl.col("IsDepiction").is_in(["0", "1", "-1"]))
    if len(odd):
        value = odd["IsDepiction"][0]
        raise InputError(
            f"{path}: IsDepiction is {value!r} for image {odd['ImageID'][0]} where 0, 1 or -1 is expected: correct the "
            "annotations and run a01 again, or keep the depictions"
        )
    return objects.filter(pl.col("IsDepiction") == "1").with_columns(Reason=pl.lit(DEPICTION))


def _damaged(output_path: str | Path, split: str) -> set[tuple[str, ...]]:
    """Folder and name of the files that a02 could not read; none where a02 has not run, or found nothing wrong.

    Not the ids: a02 lists what is no image at all, too, such as a text file beside its image.
    """
    path = paths.image_problems(output_path, split)
    if not path.is_file():
        return set()
    return {Path(file).parts[-2:] for file in pl.read_csv(path, infer_schema=False)["path"]}


def _read(path: Path, columns: tuple[str, ...]) -> pl.DataFrame:
    """Reads a file of a01 as text; empty fields stay empty strings."""
    require_file(path, "run a01_create_training_files.py")
    try:
        frame = pl.read_csv(path, infer_schema=False).fill_null("")
        return frame.select("ImageID", *columns)
    except pl.exceptions.PolarsError as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"{path} is damaged ({reason}): run a01_create_training_files.py again") from error


def _indexed(frame: pl.DataFrame, classes: pl.DataFrame, images: pl.DataFrame) -> pl.DataFrame:
    """Adds the columns `image` and `class`, drops rows of other images, and sorts by image, order kept within."""
    of_class = [column for column in classes.columns if column != "class"]
    frame = frame.with_row_index("row").join(images, on="ImageID").join(classes, on=of_class)
    return frame.sort("image", "row")


def _boxes(frame: pl.DataFrame, num_images: int, path: Path) -> Boxes:
    try:
        boxes = frame.select(pl.col(COORDINATES).cast(pl.Float32)).to_numpy()
    except pl.exceptions.PolarsError as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"{path}: a coordinate is no number ({reason}): run a01 again") from error
    offsets = _offsets(frame["image"].to_numpy(), num_images)
    return Boxes(offsets, np.ascontiguousarray(boxes, "float32").reshape(-1, 4), frame["class"].to_numpy())


def _offsets(image: np.ndarray, num_images: int) -> np.ndarray:
    """Where each image's rows begin, int64 `(num_images + 1,)`, for rows sorted by their `image`."""
    counts = np.bincount(image, minlength=num_images)
    return np.concatenate([[0], np.cumsum(counts)]).astype("int64")
