"""Which of Open Images' rules hold for the labels of a training."""

import dataclasses
from typing import Literal

import numpy as np

from training.class_relations import ancestor_matrix
from training.data_set import DataSet

IgnoredRegions = Literal["all", "depictions", "none"]


@dataclasses.dataclass(frozen=True)
class LabelRules:
    """The rules that are in force.

    Attributes:
        verified: no gradient for a class that is not verified in an image.
        regions: where there is none for the classes of a region: in "all" ignored regions, or in "depictions", and in
            the rest of objects that a training picture cuts off or leaves out; or in "none" of these.
        ancestors: none against a class above a box's own, see `training.class_relations.ancestor_matrix`; None = not in
            force.
        region_classes: which classes a region's label means, see `training.data_set.DataSet`; None = each label is the
            class itself, or there are no regions.
    """

    verified: bool
    regions: IgnoredRegions
    ancestors: np.ndarray | None
    region_classes: np.ndarray | None


def in_force(flags: dict, labels: list[str], train: DataSet) -> LabelRules:
    """Of the rules that a03's flags ask for those that this data can follow; prints them, and why the others cannot.

    Args:
        flags: a03's.
        labels: of the classes, in the order of the network's outputs.
        train: the training data.
    """
    asked = flags["label_rules"]
    verified = "verified" in asked and train.has_image_labels
    ancestors = ancestor_matrix(flags["dataset_path"], labels) if "ancestors" in asked else None
    without = {"verified": not verified, "ancestors": ancestors is None}
    rules = [rule for rule in asked if not without.get(rule)]
    print(f"label rules: {', '.join(rules) or 'none'}")
    if "verified" in asked and not verified:
        print("a01 found no image-level labels: a class without a box in an image counts as absent there")
    if "ancestors" in asked and ancestors is None:
        print("no class of this level lies above another in the hierarchy: there are no ancestors to spare")
    regions = "all" if "regions" in asked else "depictions" if "depictions" in asked else "none"
    return LabelRules(
        verified=verified,
        regions=regions,
        ancestors=ancestors,
        region_classes=None if regions == "none" else train.region_classes,
    )
