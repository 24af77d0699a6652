"""The classes that are kept, and the choice of a part of them by name, by level and by number of boxes."""

import dataclasses
from collections.abc import Iterable
from functools import cached_property

import polars as pl

from oid import paths
from oid.annotations import find_class, read_class_descriptions
from oid.files import InputError, require_file
from oid.hierarchy import Hierarchy, read_hierarchy


@dataclasses.dataclass(frozen=True)
class Classes:
    """The kept classes, and all others that are known.

    Attributes:
        names: {label: name} of the kept classes, in the order of the network's outputs.
        hierarchy: the full one, excluded classes included.
        described: every label that has a description.
        is_part: the user has chosen a part of the classes.
    """

    names: dict[str, str]
    hierarchy: Hierarchy
    described: tuple[str, ...]
    is_part: bool = False

    @cached_property
    def labels(self) -> pl.Enum:
        """Every known label: the kept classes in their order, then the excluded ones."""
        known = dict.fromkeys([*self.names, *self.hierarchy.labels, *self.described])
        return pl.Enum([label for label in known if label != self.hierarchy.root])

    @cached_property
    def heights(self) -> dict[str, str]:
        """{label: level} in the hierarchy contracted to the kept classes; "1" for classes outside the hierarchy."""
        contracted = self.hierarchy.contract(self.names)
        return {label: str(contracted.height(label)) if label in contracted else "1" for label in self.names}

    def of_level(self, level: str) -> list[str]:
        """Returns the kept classes of a level in their order; all of them for "all" and "rare"."""
        return [label for label, height in self.heights.items() if level in (height, "all", "rare")]

    def of_levels(self, levels: tuple[str, ...], optional: tuple[str, ...] = ()) -> dict[str, list[str]]:
        """Returns {level: its classes} without those of `levels` that have no class.

        Raises:
            InputError: no level has a class, or a level without classes is neither in `optional` nor, for a part of the
                classes, a height of the full hierarchy.
        """
        found = {level: labels for level in levels if (labels := self.of_level(level))}
        optional = {*optional, *(str(self.hierarchy.height(label)) for label in self.hierarchy.labels if self.is_part)}
        for level in levels:
            if level not in found and (level not in optional or not found):
                heights = " ".join(sorted(set(self.heights.values()), key=int))
                raise InputError(f"no class has level {level}: choose from {heights} all rare")
        return found

    def part(self, labels: Iterable[str]) -> "Classes":
        """Returns the same with fewer kept classes. Raises an InputError if there are none."""
        names = self.names_of(labels)
        if not names:
            raise InputError("no class is named: give names or labels, for example Helmet,Tree")
        return dataclasses.replace(self, names=names, is_part=True)

    def names_of(self, labels: Iterable[str]) -> dict[str, str]:
        """Returns {label: name} of some kept classes, in the order of all."""
        labels = set(labels)
        return {label: name for label, name in self.names.items() if label in labels}

    def find_all(self, texts: Iterable[str]) -> list[str]:
        """Returns the labels of `texts`, each a label, a name, or several with commas between; see `find_class`."""
        known = {*self.names, *self.names.values()}
        parts = [part.strip() for text in texts for part in ([text] if text in known else text.split(","))]
        return [find_class(part, self.names) for part in parts if part]


def read_classes(dataset_path: str) -> tuple[Classes, list[str]]:
    """Reads class descriptions and hierarchy.

    Returns:
        The classes, and the names of the other classes in the deciding file: the root, and those without description.

    Raises:
        InputError: a file is missing or damaged, or no class is left.
    """
    download = "download it from https://storage.googleapis.com/openimages/web/download.html"
    boxable_path = paths.annotation_file(dataset_path, paths.CLASS_DESCRIPTIONS)
    described = read_class_descriptions(require_file(boxable_path, download))
    deciding_path = paths.evaluated_class_descriptions(dataset_path)
    names = read_class_descriptions(deciding_path)
    hierarchy_path = paths.annotation_file(dataset_path, paths.HIERARCHY)
    hierarchy = read_hierarchy(require_file(hierarchy_path, download))
    kept = {label: name for label, name in names.items() if label in described and label != hierarchy.root}
    if not kept:
        raise InputError(f"{deciding_path} and {boxable_path} have no class in common: they must use the same labels")
    return Classes(kept, hierarchy, tuple(described)), [name for label, name in names.items() if label not in kept]
