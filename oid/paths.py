"""Where the pipeline's files lie below DATASET and OUTPUT: the one place that spells their names.

DATASET has annotations/ (Open Images' files) and the images of train/, validation/ and test/, either flat or in folders
of the id's first three characters. The scripts write below OUTPUT.
"""

import json
from pathlib import Path

from oid.files import InputError

HIERARCHY = "bbox_labels_600_hierarchy.json"
CLASS_DESCRIPTIONS = "class-descriptions-boxable.csv"
CHALLENGE_CLASS_DESCRIPTIONS = "challenge-2018-class-descriptions-500.csv"


def annotation_file(dataset_path: str | Path, name: str) -> Path:
    """`DATASET/annotations/<name>`."""
    return Path(dataset_path) / "annotations" / name


def box_annotations(dataset_path: str | Path, split: str) -> Path:
    """The boxes of a split as Open Images ships them."""
    return annotation_file(dataset_path, f"{split}-annotations-bbox.csv")


def image_label_annotations(dataset_path: str | Path, split: str) -> Path:
    """The human-verified image-level labels of a split, of the boxable classes."""
    return annotation_file(dataset_path, f"{split}-annotations-human-imagelabels-boxable.csv")


def evaluated_class_descriptions(dataset_path: str | Path) -> Path:
    """The class list that counts: the challenge's where it is present, else all boxable classes."""
    challenge = annotation_file(dataset_path, CHALLENGE_CLASS_DESCRIPTIONS)
    return challenge if challenge.is_file() else annotation_file(dataset_path, CLASS_DESCRIPTIONS)


def source_mark(dataset_path: str | Path) -> Path:
    """From what a01 made the data set; absent where it was downloaded."""
    return Path(dataset_path) / "source.json"


def source_images(dataset_path: str | Path) -> Path:
    """Which image of the source has which id."""
    return Path(dataset_path) / "source_images.csv"


def source_problems(folder: str | Path) -> Path:
    """What was wrong with a source, or could not be exported; absent where nothing was."""
    return Path(folder) / "source_problems.csv"


def level_folder(output_path: str | Path, level: str) -> Path:
    """`OUTPUT/level_<n>_files`, level being a height ("1" is the leaves), "all" or "rare"."""
    return Path(output_path) / f"level_{level}_files"


def level_boxes(output_path: str | Path, level: str, split: str) -> Path:
    """a01's boxes of a level."""
    return level_folder(output_path, level) / f"{split}-annotations-bbox-level-{level}.csv"


def level_image_labels(output_path: str | Path, level: str, split: str) -> Path:
    """a01's expanded image-level labels of a level."""
    return level_folder(output_path, level) / f"{split}-image-labels-level-{level}.csv"


def level_ignored_regions(output_path: str | Path, level: str, split: str) -> Path:
    """a01's regions that give no gradient."""
    return level_folder(output_path, level) / f"{split}-ignored-regions-level-{level}.csv"


def level_class_descriptions(output_path: str | Path, level: str) -> Path:
    """a01's classes of a level, in the order of the network's outputs."""
    return level_folder(output_path, level) / f"class-descriptions-boxable-level-{level}.csv"


def level_left_out_classes(output_path: str | Path, level: str) -> Path:
    """a01's list of the classes that are in a level by height, and have too few training boxes."""
    return level_folder(output_path, level) / f"left-out-classes-level-{level}.csv"


def level_image_ids(output_path: str | Path, level: str) -> Path:
    """a01's `train/<id>` lines, as the official downloader takes them."""
    return level_folder(output_path, level) / f"image-ids-level-{level}.txt"


def image_params(output_path: str | Path, split: str) -> Path:
    """a02's table of a split."""
    return Path(output_path) / f"{split}_image_params.csv"


def image_problems(output_path: str | Path, split: str) -> Path:
    """a02's list of the files of a split that are no images; there is none where all are."""
    return Path(output_path) / f"{split}_image_problems.csv"


def level_coverage(output_path: str | Path, level: str) -> Path:
    """a02's table of how well anchors cover the boxes of each class of a level."""
    return Path(output_path) / f"coverage_level_{level}.csv"


def level_anchors(output_path: str | Path, level: str) -> Path:
    """a02's anchor sizes for a level, which a03 takes by --anchors."""
    return Path(output_path) / f"anchors_level_{level}.json"


def data_set_page(output_path: str | Path) -> Path:
    """a02's page of plots."""
    return Path(output_path) / "data_set.html"


def levels_made(output_path: str | Path) -> list[str]:
    """The levels that a01 has made, in the order of their names."""
    folders = sorted(Path(output_path).glob("level_*_files"))
    levels = [folder.name.removeprefix("level_").removesuffix("_files") for folder in folders]
    return [level for level in levels if level_class_descriptions(output_path, level).is_file()]


def run_folder(output_path: str | Path, run: str | Path) -> Path:
    """a03's folder: `run` itself where it is a run's folder or the checkpoint in it, else `OUTPUT/weights/<run>`."""
    path = Path(run)
    if (path / "settings.json").is_file() or (path.name == "checkpoint" and (path.parent / "settings.json").is_file()):
        return path
    return Path(output_path) / "weights" / run


def finished_runs(output_path: str | Path) -> list[str]:
    """Names of the runs in `OUTPUT/weights` whose training has reached its end, and of converted ones.

    Raises:
        InputError: there are none.
    """
    folder = Path(output_path) / "weights"
    runs = sorted(file.parent for file in folder.glob("[!.]*/model.keras"))
    runs = [run.name for run in runs if (run / "settings.json").is_file() and _is_finished(run)]
    if not runs:
        raise InputError(f"{folder} has no run that has finished its training")
    return runs


def _is_finished(run: Path) -> bool:
    try:
        states = [json.loads(file.read_text(encoding="utf-8")) for file in run.glob("checkpoint*/state.json")]
        finished = [state["epochs"] >= state["total"] for state in states]
    except (OSError, ValueError, KeyError):  # a checkpoint is being replaced, or is damaged
        return False
    return any(finished) or not states  # a converted run has no checkpoint


def run_export(output_path: str | Path, run: str | Path, form: str) -> Path:
    """a04's export of one run, or of `<run>/checkpoint`: a file for "onnx", else a folder."""
    name = run_predictions(output_path, "", run).stem
    return Path(output_path) / "exports" / (f"{name}.onnx" if form == "onnx" else name)


def run_predictions(output_path: str | Path, split: str, run: str | Path) -> Path:
    """a04's predictions of one run, or of `<run>/checkpoint`."""
    path = Path(run)
    name = f"{path.parent.name}_checkpoint" if path.name == "checkpoint" else path.name
    return Path(output_path) / "predictions" / split / f"{name}.csv"


def expanded_predictions(predictions: str | Path) -> Path:
    """a05's file for one of a04's: `X.csv` or `X.csv.gz` -> `X.expanded.csv`."""
    path = Path(predictions)
    return (path.with_suffix("") if path.suffix == ".gz" else path).with_suffix(".expanded.csv")


def all_expanded_predictions(output_path: str | Path, split: str) -> list[Path]:
    """Every file that a05 wrote for a split, in the order of their names: what a06 fuses unless told otherwise."""
    folder = Path(output_path) / "predictions" / split
    return sorted(folder.glob("[!.]*.expanded.csv"))  # a hidden one is not finished: a05 is running, or was killed


def submission(output_path: str | Path, split: str) -> Path:
    """a06's fused predictions."""
    return Path(output_path) / "predictions" / split / "submission.csv"


def metrics_file(predictions: str | Path) -> Path:
    """a07's result for a prediction file: `X.csv` or `X.csv.gz` -> `X.metrics.json`."""
    path = Path(predictions)
    return path.with_name(path.name.removesuffix(".gz").removesuffix(".csv") + ".metrics.json")
