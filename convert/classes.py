"""The classes of published checkpoints, in the order of their outputs; writes those of Open Images as a file.

Reads    DATASET/annotations/class-descriptions-boxable.csv and challenge-2018-class-descriptions-500.csv
Writes   OUTPUT, rows `label,name` without a header

A checkpoint does not name its classes. The constants and the inference script of "Keras-RetinaNet for Open Images
Challenge 2018" do: the 443 leaf classes of the challenge of 2018, in alphabetical order of their names in
class-descriptions-boxable.csv. The 500 classes of 2019 are these, then the 57 classes above others in an order typed by
hand. The challenge's file, whose order a01 keeps, has neither order.

    python -m convert.classes DATASET --number 443 --output classes_443.csv
    python -m convert.cli FILE.h5 --output RUN --classes classes_443.csv
"""

import os
from pathlib import Path
from typing import Literal

from models.run_settings import DetectionClass
from oid import paths
from oid.annotations import read_class_descriptions, write_class_descriptions
from oid.files import InputError, output_file, remedy

LEAVES, ALL = 443, 500
INNER = (  # names of the 57 classes with others below them, in the order of the outputs of 2019
    *("Toy", "Home appliance", "Plumbing fixture", "Office supplies", "Tableware", "Kitchen appliance", "Couch", "Bed"),
    *("Table", "Clock", "Sculpture", "Traffic sign", "Building", "Person", "Dessert", "Fruit", "Shellfish", "Squash"),
    *("Sandwich", "Tree", "Flower", "Car", "Boat", "Aircraft", "Hat", "Skirt", "Glove", "Trousers", "Footwear"),
    *("Luggage and bags", "Helmet", "Bird", "Marine invertebrates", "Beetle", "Moths and butterflies", "Bear"),
    *("Marine mammal", "Turtle", "Fish", "Personal care", "Musical instrument", "Ball", "Racket", "Weapon"),
    *("Telephone", "Drink", "Seafood", "Watercraft", "Insect", "Carnivore", "Vegetable", "Land vehicle", "Reptile"),
    *("Invertebrate", "Furniture", "Vehicle", "Animal"),
)

# In the order of COCO's ids; as labels, the names have underscores, because spaces separate the values of predictions.
COCO_NAMES = (
    *("person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat", "traffic light"),
    *("fire hydrant", "stop sign", "parking meter", "bench", "bird", "cat", "dog", "horse", "sheep", "cow"),
    *("elephant", "bear", "zebra", "giraffe", "backpack", "umbrella", "handbag", "tie", "suitcase", "frisbee"),
    *("skis", "snowboard", "sports ball", "kite", "baseball bat", "baseball glove", "skateboard", "surfboard"),
    *("tennis racket", "bottle", "wine glass", "cup", "fork", "knife", "spoon", "bowl", "banana", "apple"),
    *("sandwich", "orange", "broccoli", "carrot", "hot dog", "pizza", "donut", "cake", "chair", "couch"),
    *("potted plant", "bed", "dining table", "toilet", "tv", "laptop", "mouse", "remote", "keyboard", "cell phone"),
    *("microwave", "oven", "toaster", "sink", "refrigerator", "book", "clock", "vase", "scissors", "teddy bear"),
    *("hair drier", "toothbrush"),
)


def main(dataset_path: str, *, output: str | None = None, number: Literal[443, 500] = LEAVES) -> None:
    """Both files belong to Open Images; the scripts a01 and a05 read them, too.

    Args:
        dataset_path: folder of the data set
        output: CSV to write (default: classes_443.csv or classes_500.csv)
        number: of the classes: 443 for the checkpoints of 2018, 500 for those of 2019
    """
    target = output_file(output or f"classes_{number}.csv", "give another place by --output")
    boxable = paths.annotation_file(dataset_path, paths.CLASS_DESCRIPTIONS)
    challenge = paths.annotation_file(dataset_path, paths.CHALLENGE_CLASS_DESCRIPTIONS)
    names, counted = read_class_descriptions(boxable), set(read_class_descriptions(challenge))
    with remedy(f"{boxable} and {challenge} must be those of the {ALL} classes of 2018"):
        classes = published_classes(names, counted)
    write_class_descriptions(target, dict(classes[:number]))
    print(f"wrote {target}: {number} classes, from {classes[0][1]} to {classes[number - 1][1]}")


def published_classes(names: dict[str, str], challenge: set[str]) -> list[tuple[str, str]]:
    """The 500 classes as `(label, name)`, in the order of the outputs of 2019; the first 443 are those of 2018.

    Args:
        names: of all boxable classes, by label.
        challenge: labels of the challenge's classes.

    Raises:
        InputError: there are other classes.
    """
    if missing := challenge - set(names):
        raise InputError(f"{len(missing)} classes of the challenge have no name, {min(missing)} for example")
    by_name = {names[label]: label for label in sorted(challenge)}
    if missing := [name for name in INNER if name not in by_name]:
        raise InputError(f"the challenge has no class {missing[0]}")
    if len(challenge) != ALL or len(by_name) != ALL:
        raise InputError(f"the challenge has {len(challenge)} classes with {len(by_name)} names")
    leaves = sorted(set(by_name) - set(INNER))
    return [(by_name[name], name) for name in (*leaves, *INNER)]


def in_another_order(names: list[str]) -> bool:
    """Whether there are as many classes as published checkpoints have, but not in their order."""
    leaves = names[:LEAVES]
    return len(names) in (LEAVES, ALL) and leaves != sorted(leaves)


def classes_of_outputs(count: int, path: Path, classes: str | os.PathLike | None) -> tuple[DetectionClass, ...]:
    """The classes of a checkpoint's outputs.

    Args:
        count: of the outputs, without the background.
        path: of the checkpoint, for the error.
        classes: a class description file; None = COCO's names if there are 80 outputs, else numbers.

    Raises:
        InputError: the file is damaged, or has another number of classes.
    """
    if classes is None:
        names = COCO_NAMES if count == len(COCO_NAMES) else map(str, range(count))
        return tuple(DetectionClass(name.replace(" ", "_"), name) for name in names)
    found = read_class_descriptions(classes)
    if len(found) != count:
        raise InputError(
            f"{classes} has {len(found)} classes, {path} has {count} without the background: give the list that it was "
            "trained on"
        )
    return tuple(DetectionClass(*pair) for pair in found.items())


if __name__ == "__main__":
    from oid.command_line import run_script

    run_script(main)
