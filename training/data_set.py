"""A split of a level, as a01 wrote it, in arrays: its images, their files, and what is in them.

All of Open Images has 14.6 million boxes in 1.7 million images: rows are parsed in a stream and kept as numbers.
"""

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import polars as pl

from oid import paths
from oid.annotations import read_class_descriptions
from oid.columns import CORNERS
from oid.files import InputError, require_file
from oid.images.find import list_images
from training.verified_labels import coarse_classes

GROUP_OF, DEPICTION = 1, 2  # kinds of ignored regions
IS_BELOW = pl.col("Reason") == "ancestor_class"  # the label of such a region stands for the classes below it
IS_DEPICTION = pl.col("IsDepiction").cast(pl.Enum(["-1", "0", "1"])) == "1"


class ImagePaths(Sequence[Path]):
    """Files of a folder; a path is made when it is asked for, because two million take a gigabyte.

    Args:
        folder: that holds them.
        names: below the folder.
    """

    def __init__(self, folder: Path, names: pl.Series):
        self._folder = folder
        self._names = names

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, index: int) -> Path:
        return self._folder / self._names[index]


@dataclasses.dataclass(frozen=True)
class Boxes:
    """Boxes of many images in one block: those of image `i` are rows `offsets[i]` to `offsets[i + 1]`.

    Attributes:
        offsets: int64 `(images + 1,)`.
        boxes: float32 `(N, 4)`, xyxy, normalised.
        labels: int32 `(N,)`, class indices.
    """

    offsets: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray

    def of(self, image: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns the boxes `(n, 4)` and labels `(n,)` of one image."""
        rows = slice(self.offsets[image], self.offsets[image + 1])
        return self.boxes[rows], self.labels[rows]

    def only(self, chosen: np.ndarray) -> "Boxes":
        """Returns the boxes where bool `(N,)` is true."""
        before = np.concatenate([[0], np.cumsum(chosen)])
        return Boxes(before[self.offsets], self.boxes[chosen], self.labels[chosen])

    @property
    def image(self) -> np.ndarray:
        """The image of each box, int32 `(N,)`, ascending."""
        return np.repeat(np.arange(len(self.offsets) - 1, dtype="int32"), np.diff(self.offsets))


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
        verified: pairs (image, class), int32 `(N, 2)`, by image: image-level labels, positive and negative.
        missing: ids of images left out because they have no file, or a damaged one.
        region_classes: float32 `(classes + coarse, classes)`: row l is 1 for the classes that a region's label l means;
            the same for every split of a level. None = each label is the class itself.
        coarse_names: of the coarse classes.
    """

    image_ids: list[str]
    paths: Sequence[Path]
    objects: Boxes
    regions: Boxes
    group_of: np.ndarray
    depiction: np.ndarray
    verified: np.ndarray
    missing: list[str]
    region_classes: np.ndarray | None = None
    coarse_names: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.image_ids)

    @functools.cached_property
    def depictions(self) -> Boxes:
        """The regions that are depictions."""
        return self.regions.only(self.depiction)

    def verified_of(self, image: int) -> np.ndarray:
        """Returns the classes that people have verified in an image, int32 `(n,)`, ascending.

        Present or absent by an image-level label, or present by a box: an ordinary, a group-of or a depiction's one.
        Nobody knows of the other classes whether the image shows them.
        """
        rows = slice(self.regions.offsets[image], self.regions.offsets[image + 1])
        boxed = self.regions.labels[rows][self.group_of[rows] | self.depiction[rows]]
        labelled = self.verified[slice(*self._label_offsets[image : image + 2]), 1]
        return np.unique(np.concatenate([labelled, self.objects.of(image)[1], boxed]))

    @functools.cached_property
    def _label_offsets(self) -> np.ndarray:
        return _offsets(self.verified[:, 0], len(self))


def distinct_pairs(image: np.ndarray, classes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Each pair (image, class) once: the images and the classes, int32 `(N,)`, by image, then by class."""
    width = int(classes.max(initial=0)) + 1
    keys = np.unique(image.astype("int64") * width + classes)
    return (keys // width).astype("int32"), (keys % width).astype("int32")


def read_classes(output_path: str | Path, level: str) -> dict[str, str]:
    """Reads the classes of a level, `{label: name}` in the order of the network's outputs.

    Raises:
        InputError: a01 has not made the level.
    """
    path = paths.level_class_descriptions(output_path, level)
    require_file(path, f"run a01_create_training_files.py with --levels {level}")
    return read_class_descriptions(path)


# === Reading =========================================================================================================
def read_data_set(
    dataset_path: str | Path,
    output_path: str | Path,
    level: str,
    split: str,
    *,
    at_most: int = 0,
    leave_out_depictions: bool = False,
) -> DataSet:
    """Reads a split of a level. Images that have no file, or that a02 found damaged, are left out.

    Args:
        dataset_path: DATASET, with the images of the split below it.
        output_path: OUTPUT, with a01's files.
        level: as a01 names it ("1", "2", "all", "rare").
        split: "train" or "validation".
        at_most: take this number of images, chosen at random but always the same; 0 = all.
        leave_out_depictions: boxes of drawings and the like (IsDepiction 1; -1 is unknown and counts as no) become
            ignored regions: neither to be found nor background.

    Raises:
        InputError: a file of a01 is missing or damaged; or all images are missing; or the hierarchy does not tell what
            an ignored region means.
    """
    labels = list(read_classes(output_path, level))
    box_file = paths.level_boxes(output_path, level, split)
    region_file = paths.level_ignored_regions(output_path, level, split)
    label_file = paths.level_image_labels(output_path, level, split)
    coarse = coarse_classes(dataset_path, labels)
    coarse_labels = () if coarse is None else coarse.labels
    _check_coarse_labels(region_file, coarse_labels, paths.annotation_file(dataset_path, paths.HIERARCHY))
    meaning = pl.when(IS_BELOW).then(_class_index(coarse_labels) + len(labels)).otherwise(_class_index(labels))
    regions = _read_boxes(region_file, meaning, kind=pl.when(pl.col("Reason") == "group_of").then(GROUP_OF))
    objects = _read_boxes(box_file, _class_index(labels), kind=pl.when(IS_DEPICTION).then(DEPICTION))
    image_labels = _collect(label_file, _scan(label_file).select("ImageID", label=_class_index(labels)))

    listed = pl.concat([objects["ImageID"], regions["ImageID"]]).unique(maintain_order=True)
    folder = Path(dataset_path) / split
    images = _image_files(listed, folder, paths.image_problems(output_path, split))
    missing = images.filter(pl.col("name").is_null())["ImageID"].cast(pl.String).to_list()
    images = images.drop_nulls("name")
    if missing and not len(images):
        raise InputError(f"{box_file} names no image that lies below {folder}: check the folder of the data set")
    if 0 < at_most < len(images):
        images = images[np.sort(np.random.default_rng(0).permutation(len(images))[:at_most])]
    if leave_out_depictions:
        is_depiction = objects["kind"] == DEPICTION
        regions = pl.concat([regions, objects.filter(is_depiction)])
        objects = objects.filter(~is_depiction)
    objects, regions, image_labels = (_by_image(rows, images["ImageID"]) for rows in (objects, regions, image_labels))
    return DataSet(
        image_ids=images["ImageID"].cast(pl.String).to_list(),
        paths=ImagePaths(folder, images["name"]),
        objects=_boxes(objects, len(images)),
        regions=_boxes(regions, len(images)),
        group_of=(regions["kind"] == GROUP_OF).to_numpy(),
        depiction=(regions["kind"] == DEPICTION).to_numpy(),
        verified=image_labels.select("image", "label").to_numpy(order="c"),
        missing=missing,
        region_classes=None if coarse is None else np.concatenate([np.eye(len(labels), dtype="float32"), coarse.below]),
        coarse_names=() if coarse is None else coarse.names,
    )


def _scan(path: Path) -> pl.LazyFrame:
    """A file of a01 that is parsed in a stream; ids become numbers, so that no text is kept."""
    require_file(path, "run a01_create_training_files.py")
    types = {"ImageID": pl.Categorical, **dict.fromkeys(CORNERS, pl.Float32)}
    return pl.scan_csv(path, infer_schema=False, glob=False, schema_overrides=types)


def _collect(path: Path, rows: pl.LazyFrame) -> pl.DataFrame:
    try:
        return rows.collect(engine="streaming")
    except pl.exceptions.PolarsError as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"{path} is damaged ({reason}): run a01_create_training_files.py again") from error


def _class_index(labels: Sequence[str]) -> pl.Expr:
    """The place of LabelName in `labels`, or -1."""
    place = pl.col("LabelName").cast(pl.Enum(labels), strict=False).to_physical().cast(pl.Int32)
    return place.fill_null(-1)


def _read_boxes(path: Path, label: pl.Expr, kind: pl.Expr) -> pl.DataFrame:
    """ImageID, the corners, `label` (-1 = no class of the level) and `kind` (`GROUP_OF`, `DEPICTION` or 0)."""
    kind = kind.otherwise(0).cast(pl.UInt8)
    frame = _collect(path, _scan(path).select("ImageID", *CORNERS, label=label, kind=kind))
    incomplete = frame.filter((pl.col("label") >= 0) & pl.any_horizontal(pl.col(CORNERS).is_null()))
    if len(incomplete):
        raise InputError(f"{path} has a box without coordinates in image {incomplete['ImageID'][0]}: run a01 again")
    return frame


def _check_coarse_labels(path: Path, coarse: Sequence[str], hierarchy: Path) -> None:
    """Raises an InputError where the hierarchy does not say which classes are below the label of a region."""
    unknown = _scan(path).filter(IS_BELOW & ~pl.col("LabelName").is_in(coarse)).select("ImageID", "LabelName").head(1)
    for image, label in _collect(path, unknown).iter_rows():
        raise InputError(
            f"{path} has a region of the classes below {label} in image {image}, and {hierarchy} does not exist or "
            "has no class of the level below it: put it there, or run a01_create_training_files.py again"
        )


def _image_files(listed: pl.Series, folder: Path, problems: Path) -> pl.DataFrame:
    """Returns ImageID of the listed images, and the `name` of their file below `folder`; null = no sound file.

    Args:
        listed: ids, categorical.
        folder: with the images.
        problems: a02's list of damaged files; it may be absent.
    """
    names = pl.Series("name", list_images(folder).names, pl.String)
    if problems.is_file():
        # folder and name: a02 also lists what is not an image, such as a text file beside its image
        bad = _last_two_parts(pl.read_csv(problems, infer_schema=False)["path"])
        names = names.filter(~_last_two_parts(f"{folder.name}/" + names).is_in(bad.implode()))
    files = names.to_frame().with_columns(id=names.str.extract(r"([^/]*)\.[^./]*$"))
    images = pl.DataFrame({"ImageID": listed, "id": listed.cast(pl.String)})
    return images.join(files, on="id", how="left", maintain_order="left").drop("id")


def _last_two_parts(path_names: pl.Series) -> pl.Series:
    return path_names.str.extract("([^/]*/[^/]*)$")


def _by_image(rows: pl.DataFrame, image_ids: pl.Series) -> pl.DataFrame:
    """The rows that have a class and an image of the data set, sorted by `image`, its place in `image_ids`."""
    codes, numbers = (ids.to_physical().to_numpy() for ids in (rows["ImageID"], image_ids))
    place = np.full(max(codes.max(initial=0), numbers.max(initial=0)) + 1, -1, "int32")
    place[numbers] = np.arange(len(numbers))
    rows = rows.drop("ImageID").with_columns(image=place[codes])
    return rows.filter((pl.col("label") >= 0) & (pl.col("image") >= 0)).sort("image", maintain_order=True)


def _boxes(rows: pl.DataFrame, num_images: int) -> Boxes:
    offsets = _offsets(rows["image"].to_numpy(), num_images)
    return Boxes(offsets, rows.select(CORNERS).to_numpy(order="c"), rows["label"].to_numpy())


def _offsets(image: np.ndarray, num_images: int) -> np.ndarray:
    """Where each image's rows begin, int64 `(num_images + 1,)`, for rows sorted by their `image`."""
    counts = np.bincount(image, minlength=num_images)
    return np.concatenate([[0], np.cumsum(counts)]).astype("int64")
