"""A split of a level, as a01 wrote it, in arrays: its images, their files, and what is in them.

All of Open Images has 14.6 million boxes in 1.7 million images: rows are parsed in a stream and kept as numbers.
"""

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

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
IS_DEPICTION = pl.col("IsDepiction") == "1"


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
        present: bool `(labels,)`, whether the class of a pair of `verified` is in the image, or known not to be there.
        has_image_labels: whether the split has any image-level label at all, in whichever image.
        missing: number of images left out because they have no file, or a damaged one.
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
    present: np.ndarray
    has_image_labels: bool
    missing: int
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
        labelled = self.verified[self._labels_of(image), 1]
        return np.unique(np.concatenate([labelled, self._boxed_classes(image)]))

    def present_in(self, image: int) -> np.ndarray:
        """Returns those of `verified_of` that are present, not absent, in the image."""
        rows = self._labels_of(image)
        return np.unique(np.concatenate([self.verified[rows, 1][self.present[rows]], self._boxed_classes(image)]))

    def _boxed_classes(self, image: int) -> np.ndarray:
        rows = slice(self.regions.offsets[image], self.regions.offsets[image + 1])
        boxed = self.group_of[rows] | self.depiction[rows]
        return np.concatenate([self.objects.of(image)[1], self.regions.labels[rows][boxed]])

    def _labels_of(self, image: int) -> slice:
        return slice(*self._label_offsets[image : image + 2])

    @functools.cached_property
    def _label_offsets(self) -> np.ndarray:
        return _offsets(self.verified[:, 0], len(self))


def distinct_pairs(image: np.ndarray, classes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Each pair (image, class) once: the images and the classes, int32 `(N,)`, by image, then by class."""
    width = int(classes.max(initial=0)) + 1
    keys = image.astype("int64")
    keys *= width
    keys += classes
    keys.sort()
    is_new = np.ones(len(keys), bool)
    np.not_equal(keys[1:], keys[:-1], out=is_new[1:])
    keys = keys[is_new]
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
        at_most: take this number of images, chosen at random but always the same; 0 = all.
        leave_out_depictions: boxes of drawings and the like (IsDepiction 1; -1 is unknown and counts as no) become
            ignored regions: neither to be found nor background.

    Raises:
        InputError: a file of a01 is missing or damaged, or images are missing; or the hierarchy does not tell what an
            ignored region means.
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
    listed = pl.concat([objects.image_id, regions.image_id]).unique(maintain_order=True)
    if leave_out_depictions:
        _check_depictions(box_file)
        objects, regions = _without_depictions(objects, regions)
    is_present = pl.col("Confidence") == "1"
    image_labels = _scan(label_file).select("ImageID", label=_class_index(labels), present=is_present)
    image_labels = _collect(label_file, image_labels)

    folder = Path(dataset_path) / split
    problems = paths.image_problems(output_path, split)
    images = _usable_images(listed, folder, problems, box_file, skip_missing=skip_missing)
    missing = len(listed) - len(images)
    if 0 < at_most < len(images):
        images = images[np.sort(np.random.default_rng(0).permutation(len(images))[:at_most])]
    numbers = images["ImageID"].to_physical().to_numpy()
    object_boxes, _ = _by_image(objects, numbers)
    region_boxes, kinds = _by_image(regions, numbers)
    image, order = _order(image_labels["ImageID"], image_labels["label"].to_numpy(), numbers)
    return DataSet(
        image_ids=images["ImageID"].cast(pl.String).to_list(),
        paths=ImagePaths(folder, images["name"]),
        objects=object_boxes,
        regions=region_boxes,
        group_of=kinds == GROUP_OF,
        depiction=kinds == DEPICTION,
        verified=np.stack([image, image_labels["label"].to_numpy()[order]], axis=1),
        present=image_labels["present"].to_numpy()[order],
        has_image_labels=len(image_labels) > 0,
        missing=missing,
        region_classes=None if coarse is None else np.concatenate([np.eye(len(labels), dtype="float32"), coarse.below]),
        coarse_names=() if coarse is None else coarse.names,
    )


class _Rows(NamedTuple):
    """Boxes in the order of their file.

    Attributes:
        image_id: categorical.
        labels: int32 `(N,)`, -1 where the row has no class of the level.
        boxes: float32 `(N, 4)`.
        kinds: uint8 `(N,)`: `GROUP_OF`, `DEPICTION` or 0.
    """

    image_id: pl.Series
    labels: np.ndarray
    boxes: np.ndarray
    kinds: np.ndarray


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


def _read_boxes(path: Path, label: pl.Expr, kind: pl.Expr) -> _Rows:
    kind = kind.otherwise(0).cast(pl.UInt8)
    frame = _collect(path, _scan(path).select("ImageID", *CORNERS, label=label, kind=kind))
    incomplete = frame.filter((pl.col("label") >= 0) & pl.any_horizontal(pl.col(CORNERS).is_null()))
    if len(incomplete):
        raise InputError(f"{path} has a box without coordinates in image {incomplete['ImageID'][0]}: run a01 again")
    boxes = np.empty((len(frame), 4), "float32")
    for place, name in enumerate(CORNERS):
        boxes[:, place] = frame.drop_in_place(name).to_numpy()  # column by column: two copies of all are too much
    return _Rows(frame["ImageID"], frame["label"].to_numpy(), boxes, frame["kind"].to_numpy())


def _check_coarse_labels(path: Path, coarse: Sequence[str], hierarchy: Path) -> None:
    """Raises an InputError where the hierarchy does not say which classes are below the label of a region."""
    unknown = _scan(path).filter(IS_BELOW & ~pl.col("LabelName").is_in(coarse)).select("ImageID", "LabelName").head(1)
    for image, label in _collect(path, unknown).iter_rows():
        if not hierarchy.is_file():
            raise InputError(
                f"{path} has regions of classes below others, and {hierarchy} does not exist: put it there"
            )
        raise InputError(
            f"{path} has a region of the classes below {label} in image {image}, and {hierarchy} has no class of the "
            "level below it: run a01_create_training_files.py again"
        )


def _check_depictions(path: Path) -> None:
    odd = pl.col("LabelName").is_not_null() & ~pl.col("IsDepiction").is_in(["0", "1", "-1"]).fill_null(False)
    for image, value in _collect(path, _scan(path).filter(odd).select("ImageID", "IsDepiction").head(1)).iter_rows():
        raise InputError(
            f"{path}: IsDepiction is {value!r} for image {image} where 0, 1 or -1 is expected: correct the annotations "
            "and run a01 again, or keep the depictions"
        )


def _without_depictions(objects: _Rows, regions: _Rows) -> tuple[_Rows, _Rows]:
    """Moves drawings, photographs on posters and the like from the objects to the ignored regions."""
    is_depiction = objects.kinds == DEPICTION
    moved = objects.image_id.filter(is_depiction), *(column[is_depiction] for column in objects[1:])
    columns = [np.concatenate(pair) for pair in zip(regions[1:], moved[1:], strict=True)]
    regions = _Rows(pl.concat([regions.image_id, moved[0]]), *columns)
    return objects._replace(labels=np.where(is_depiction, -1, objects.labels)), regions


def _usable_images(
    listed: pl.Series, folder: Path, problems: Path, box_file: Path, *, skip_missing: bool
) -> pl.DataFrame:
    """Returns ImageID and the `name` below `folder` of the listed images that have a sound file.

    Args:
        listed: ids, categorical, of `box_file`.
        folder: with the images.
        problems: a02's list of damaged files; it may be absent.
        box_file: of a01.
        skip_missing: the others are left out.

    Raises:
        InputError: some are missing or damaged and `skip_missing` is false, or there is none at all.
    """
    names = pl.Series("name", list_images(folder).names, pl.String)
    files = names.to_frame().with_columns(id=names.str.extract(r"([^/]*)\.[^./]*$"))
    images = pl.DataFrame({"ImageID": listed, "id": listed.cast(pl.String)})
    images = images.join(files, on="id", how="left", maintain_order="left").drop("id")
    # folder and name: a02 also lists what is not an image, such as a text file beside its image
    bad_files = (
        pl.read_csv(problems, infer_schema=False)["path"] if problems.is_file() else pl.Series([], dtype=pl.String)
    )
    is_damaged = _last_two_parts(f"{folder.name}/" + images["name"]).is_in(_last_two_parts(bad_files).implode())
    damaged = images.filter(is_damaged)
    missing = images.filter(pl.col("name").is_null())
    if len(damaged) and not skip_missing:
        raise InputError(
            f"{problems} lists {len(damaged)} images of {box_file}, the first is {folder / damaged['name'][0]}: "
            "replace them and run a02 again, or skip missing images"
        )
    if len(missing) and not skip_missing:
        raise InputError(
            f"{len(missing)} of {len(images)} images of {box_file} have no file below {folder}, the first is "
            f"{missing['ImageID'][0]}: download them, or skip missing images"
        )
    usable = images.filter(pl.col("name").is_not_null() & ~is_damaged.fill_null(False))
    if len(listed) and not len(usable):
        raise InputError(f"{box_file} names no image that lies below {folder}: check the folder of the data set")
    return usable


def _last_two_parts(path_names: pl.Series) -> pl.Series:
    return path_names.str.extract("([^/]*/[^/]*)$")


def _by_image(rows: _Rows, numbers: np.ndarray) -> tuple[Boxes, np.ndarray]:
    """Groups rows by image, in their order within; returns their kinds, too. The boxes of `rows` are used up.

    Args:
        rows: of a file.
        numbers: uint32 `(images,)`, polars' number of the id of each image of the data set.
    """
    image, order = _order(rows.image_id, rows.labels, numbers)
    for column in rows.boxes.T:  # column by column: two copies of all boxes are too much
        column[: len(order)] = column[order]
    return Boxes(_offsets(image, len(numbers)), rows.boxes[: len(order)], rows.labels[order]), rows.kinds[order]


def _order(image_id: pl.Series, labels: np.ndarray, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The rows that have a class and an image of the data set, by image: the image of each, and its row."""
    codes = image_id.to_physical().to_numpy()
    place = np.full(max(codes.max(initial=0), numbers.max(initial=0)) + 1, -1, "int32")
    place[numbers] = np.arange(len(numbers))
    image = place[codes]
    image[labels < 0] = -1
    keys = image.astype("int64")
    keys <<= 32
    keys += np.arange(len(keys), dtype="uint32")
    keys.sort()
    order = keys[np.searchsorted(keys, 0) :]
    order &= 2**32 - 1
    return image[order], order


def _offsets(image: np.ndarray, num_images: int) -> np.ndarray:
    """Where each image's rows begin, int64 `(num_images + 1,)`, for rows sorted by their `image`."""
    counts = np.bincount(image, minlength=num_images)
    return np.concatenate([[0], np.cumsum(counts)]).astype("int64")
