"""A tiny data set with ground truth and the predictions of two models, for a06 and the table of ensembles."""

from pathlib import Path

import numpy as np

from oid import paths


def write_predictions(folder: Path, name: str, rows: dict[str, str]) -> str:
    """Writes {image id: prediction string} in Kaggle's form; returns the path."""
    lines = "".join(f"{image_id},{text}\n" for image_id, text in rows.items())
    (folder / name).write_text("ImageId,PredictionString\n" + lines)
    return str(folder / name)


def make_ensemble_case(folder: Path, num_images: int = 40) -> tuple[str, str]:
    """Writes boxes of one class to `folder / "data"`, and two files: one finds them all, the other finds others at 0.9.

    Returns:
        The paths of the two prediction files.
    """
    rng = np.random.default_rng(0)
    rows, good, bad = ["ImageID,LabelName,XMin,XMax,YMin,YMax,IsGroupOf"], {}, {}
    for k in range(num_images):
        x, y = rng.random(2).round(3) * 0.5
        rows.append(f"i{k},/m/x,{x:.6f},{x + 0.3:.6f},{y:.6f},{y + 0.3:.6f},0")
        good[f"i{k}"] = f"/m/x {rng.random() * 0.5 + 0.3:.4f} {x:.6f} {y:.6f} {x + 0.3:.6f} {y + 0.3:.6f}"
        bad[f"i{k}"] = f"/m/x {rng.random() * 0.1 + 0.85:.4f} {1 - x - 0.05:.6f} {y:.6f} {1 - x:.6f} {y + 0.05:.6f}"
    boxes = paths.box_annotations(folder / "data", "validation")
    boxes.parent.mkdir(parents=True)
    boxes.write_text("\n".join(rows) + "\n")
    return write_predictions(folder, "good.csv", good), write_predictions(folder, "bad.csv", bad)
