"""Writes the classes of the published RetinaNets in the order of their outputs, as `python -m models.convert` needs it.

Reads    DATASET/annotations/class-descriptions-boxable.csv and challenge-2018-class-descriptions-500.csv
Writes   OUTPUT, rows `label,name` without a header

The checkpoints of "Keras-RetinaNet for Open Images Challenge 2018" do not tell their classes. Their constants and
their inference script do: the 443 leaf classes of the challenge of 2018, in the alphabet's order of their names in
class-descriptions-boxable.csv. The 500 classes of 2019 are these, and then the 57 classes with others below them, in an
order typed by hand. Neither is the order of the challenge's file, which a01 keeps.

    python -m models.published_classes DATASET --number 443 --output classes_443.csv
    python -m models.convert FILE.h5 --output RUN --classes classes_443.csv
"""

from typing import Literal

from oid import paths
from oid.annotations import read_class_descriptions, write_class_descriptions
from oid.files import InputError, output_file

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
    try:
        classes = published_classes(read_class_descriptions(boxable), set(read_class_descriptions(challenge)))
    except ValueError as error:
        raise InputError(f"{boxable} and {challenge} do not make the {ALL} classes of 2018: {error}") from None
    write_class_descriptions(target, dict(classes[:number]))
    print(f"wrote {target}: {number} classes, from {classes[0][1]} to {classes[number - 1][1]}")


def published_classes(names: dict[str, str], challenge: set[str]) -> list[tuple[str, str]]:
    """The 500 classes as `(label, name)`, in the order of the outputs of 2019; the first 443 are those of 2018.

    Args:
        names: of all boxable classes, by label.
        challenge: labels of the challenge's classes.

    Raises:
        ValueError: there are other classes.
    """
    if missing := challenge - set(names):
        raise ValueError(f"{len(missing)} labels of the second have no name in the first, {min(missing)} for example")
    by_name = {names[label]: label for label in sorted(challenge)}
    if missing := [name for name in INNER if name not in by_name]:
        raise ValueError(f"there is no class {missing[0]}")
    if len(challenge) != ALL or len(by_name) != ALL:
        raise ValueError(f"there are {len(challenge)} classes with {len(by_name)} names")
    leaves = sorted(set(by_name) - set(INNER))
    return [(by_name[name], name) for name in (*leaves, *INNER)]


def in_another_order(classes: dict[str, str]) -> bool:
    """Whether these are as many classes as published checkpoints have, in another order than theirs.

    Args:
        classes: names by label, in the order that is asked about.
    """
    if len(classes) not in (LEAVES, ALL):
        return False
    leaves = list(classes.values())[:LEAVES]
    return leaves != sorted(leaves)


if __name__ == "__main__":
    from a00_utils_and_constants import run_script  # the command line only: no other file of models/ knows a00

    run_script(main)
