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


# === The data set ====================================================================================================
def annotation_file(dataset_path: str | Path, name: str) -> Path:
    """`DATASET/annotations/<name>`."""
    return Path(dataset_path) / "annotations" / name


def box_annotations(dataset_path: str | Path, split: str) -> Path:
    """The boxes of a split."""
    return annotation_file(dataset_path, f"{split}-annotations-bbox.csv")


def image_label_annotations(dataset_path: str | Path, split: str) -> Path:
    """The human-verified image-level labels of a split, of the boxable classes."""
    return annotation_file(dataset_path, f"{split}-annotations-human-imagelabels-boxable.csv")


def evaluated_class_descriptions(dataset_path: str | Path) -> Path:
    """The classes that are evaluated: the challenge's if its file is present, else all boxable classes."""
    challenge = annotation_file(dataset_path, CHALLENGE_CLASS_DESCRIPTIONS)
    return challenge if challenge.is_file() else annotation_file(dataset_path, CLASS_DESCRIPTIONS)


# === a01: a level is a height in the hierarchy ("1" = the leaves), "all" or "rare" ===================================
def level_folder(output_path: str | Path, level: str) -> Path:
    """The folder of a level's files."""
    return Path(output_path) / f"level_{level}_files"


def level_boxes(output_path: str | Path, level: str, split: str) -> Path:
    """The boxes of a level."""
    return level_folder(output_path, level) / f"{split}-annotations-bbox-level-{level}.csv"


def level_image_labels(output_path: str | Path, level: str, split: str) -> Path:
    """The image-level labels of a level, expanded by the hierarchy."""
    return level_folder(output_path, level) / f"{split}-image-labels-level-{level}.csv"


def level_ignored_regions(output_path: str | Path, level: str, split: str) -> Path:
    """The regions of a level that give no gradient."""
    return level_folder(output_path, level) / f"{split}-ignored-regions-level-{level}.csv"


def level_class_descriptions(output_path: str | Path, level: str) -> Path:
    """The classes of a level, in the order of the network's outputs."""
    return level_folder(output_path, level) / f"class-descriptions-boxable-level-{level}.csv"


# === a02 =============================================================================================================
def image_params(output_path: str | Path, split: str) -> Path:
    """The size and the checksum of each image of a split."""
    return Path(output_path) / f"{split}_image_params.csv"


def image_problems(output_path: str | Path, split: str) -> Path:
    """The damaged images of a split; absent if there are none."""
    return Path(output_path) / f"{split}_image_problems.csv"


def level_coverage(output_path: str | Path, level: str) -> Path:
    """The share of the boxes of each class that anchors cover."""
    return Path(output_path) / f"coverage_level_{level}.csv"


def level_anchors(output_path: str | Path, level: str) -> Path:
    """Anchor sizes for a level, made from its boxes."""
    return Path(output_path) / f"anchors_level_{level}.json"


# === a03 to a07 ======================================================================================================
def run_folder(output_path: str | Path, run: str | Path) -> Path:
    """a03's folder: `run` itself if that is one, or the checkpoint in one, else `OUTPUT/weights/<run>`."""
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
    runs = [file.parent for file in sorted(folder.glob("[!.]*/model.keras"))]
    finished = [run.name for run in runs if _is_finished(run)]
    if not finished:
        raise InputError(f"{folder} has no run that has finished its training")
    return finished


def _is_finished(run: Path) -> bool:
    """Whether a checkpoint has the last epoch, or there is none, as in a converted run."""
    try:
        states = [json.loads(file.read_text(encoding="utf-8"))["state"] for file in run.glob("checkpoint*/state.json")]
        return not states or any(state["epochs"] >= state["plan"]["epochs"] for state in states)
    except (OSError, ValueError, KeyError, TypeError):  # a checkpoint is being replaced, or is damaged
        return False


def run_export(output_path: str | Path, run: str | Path, form: str) -> Path:
    """a04's export of a run or of `<run>/checkpoint`: a file if `form` is "onnx", else a folder."""
    name = run_predictions(output_path, "", run).stem
    return Path(output_path) / "exports" / (f"{name}.onnx" if form == "onnx" else name)


def run_predictions(output_path: str | Path, split: str, run: str | Path) -> Path:
    """a04's predictions of a run, of `<run>/checkpoint` or of a checkpoint file."""
    path = Path(run)
    name = f"{path.parent.name}_checkpoint" if path.name == "checkpoint" else path.name
    name = name.removesuffix(".h5").removesuffix(".pth")
    return Path(output_path) / "predictions" / split / f"{name}.csv"


def expanded_predictions(predictions: str | Path) -> Path:
    """a05's file for one of a04's: `X.csv` or `X.csv.gz` -> `X.expanded.csv`."""
    return _beside(predictions, "expanded.csv")


def all_expanded_predictions(output_path: str | Path, split: str) -> list[Path]:
    """Every file that a05 wrote for a split, in the order of their names: what a06 fuses unless told otherwise."""
    folder = Path(output_path) / "predictions" / split
    return sorted(folder.glob("[!.]*.expanded.csv"))  # a hidden one is not finished: a05 is running, or was killed


def submission(output_path: str | Path, split: str) -> Path:
    """a06's fused predictions."""
    return Path(output_path) / "predictions" / split / "submission.csv"


def metrics_file(predictions: str | Path) -> Path:
    """a07's result for a prediction file: `X.csv` or `X.csv.gz` -> `X.metrics.json`."""
    return _beside(predictions, "metrics.json")


def _beside(predictions: str | Path, ending: str) -> Path:
    path = Path(predictions)
    return path.with_name(f"{path.name.removesuffix('.gz').removesuffix('.csv')}.{ending}")
