"""The paths and constants that you edit: the defaults of every script.

Run `python a00_utils_and_constants.py` to see every path: what was found, what is missing, where to get it.
"""

import os

# === Edit here: the data set =========================================================================================
DATASET_PATH = os.environ.get("OID_PATH") or "data/open_images"  # change this to the location of Open Images
OUTPUT_PATH = os.environ.get("OID_OUTPUT") or os.path.normpath(DATASET_PATH) + "_output"  # all that a01 to a07 write
SPLIT = "validation"  # what a04 to a07 work on: "validation" to measure, "test" to make the submission

# === Edit here: what to train (a01, a03) =============================================================================
LEVELS = ("1", "2", "all")  # a01: heights in the class hierarchy; "1" = leaf classes, "all" = every class, "rare"
LEVEL = "1"  # a03: the level whose classes the network learns; a05 adds their ancestors
TIME_BUDGET = "20m"  # a03 plans the training to fill it: "90s", "8h", "3d"; "none" = by the number of images
BACKBONE = None  # models/backbones.py has the table; the paper has "vgg16" and "resnet101". None = a03 chooses
BACKBONE_WEIGHTS = "none"  # "imagenet" downloads them once, "none" trains from scratch, or a .h5 / .keras file
IMAGE_SIZE = None  # pixels, the side of the square that the network sees; the paper has 320, 512 and 800
TUMS, SCALES, CHANNELS = None, None, None  # U-shape modules, maps per module, channels per map; the paper: 8, 6, 128
VARIANT = None  # "paper" = the network of its figures, as None is, or of the authors' "released" code (8, 6, 256)
HEAD = "auto"  # "conv" as published; "shared" by the scales, for hundreds of classes; "light", for small networks
ANCHORS = None  # "square" = one per cell, as None is, or the "official" six, or a file that a02 makes
EPOCHS = None  # a number here counts instead of TIME_BUDGET; validation and a checkpoint after each
STEPS_PER_EPOCH = None  # with EPOCHS; 0 or None = each training image once
BATCH_SIZE = None  # images per step
PRECISION = None  # "float32", or "bfloat16" = mixed, faster where the machine has it
LEARNING_RATE = None  # the highest, after the warm-up
LABEL_RULES = ("verified", "ancestors", "regions")  # Open Images' rules for what is no negative; also "depictions"
SAMPLING, SAMPLING_EXPONENT = "images", 0.5  # "classes" draws rare classes more often, as does "repeat_factor"
VALIDATION_IMAGES = 1000  # at most so many, to choose the best epoch; 0 = all
RUN = f"{BACKBONE or 'm2det'}_level_{LEVEL}"  # a03's name for what it trains, unless --run gives another; a04, a05

# === Edit here: predictions, ensemble, metric (a04 to a07) ===========================================================
SCORE_THRESHOLD = 0.01  # a04 drops boxes below; 0.01 measures better than 0.05, and costs time
NMS_IOU = 0.55  # a04: of two boxes of one class that overlap more, the one with the lower score goes
VOTE_IOU = 0.6  # a04: a box that stays moves to the mean of those that overlap it so much; 1 = none moves
MIRROR = True  # a04: look at the mirrored image, too: a little better, in twice the time
MAX_BOXES = 300  # a04: per image
EXPANDED_NMS_IOU = 0.75  # a05: the same for classes that gained boxes from their descendants
FUSION_IOU = 0.55  # a06: boxes of several models that overlap more are fused to one
GROUP_OF_WEIGHT = 1.0  # a07: 1 in the challenges of 2018 and 2019, 0 in the older Open Images V2 metric

# === From here on nothing needs editing ==============================================================================
ORIENTATION = "stored"  # pixels as "stored" in the file (Open Images' boxes refer to these), or turned by "exif"

from pathlib import Path

from oid import paths
from oid.command_line import run_script


def main() -> None:
    """Prints every path that the scripts use: found, missing, and where a missing one comes from."""
    download = "https://storage.googleapis.com/openimages/web/download.html"
    annotations = [paths.annotation_file(DATASET_PATH, name) for name in (paths.HIERARCHY, paths.CLASS_DESCRIPTIONS)]
    annotations += [paths.box_annotations(DATASET_PATH, split) for split in ("train", "validation")]
    optional = [paths.image_label_annotations(DATASET_PATH, split) for split in ("train", "validation")]
    optional += [paths.annotation_file(DATASET_PATH, paths.CHALLENGE_CLASS_DESCRIPTIONS)]
    images = [Path(DATASET_PATH) / split for split in ("train", "validation", "test")]
    levels = [paths.level_folder(OUTPUT_PATH, level) for level in LEVELS]
    rows = [(path, f"download it from {download}") for path in annotations]
    rows += [(path, f"optional; {download}") for path in optional]
    rows += [(path, "images; a01 writes the ids that the official downloader takes") for path in images]
    rows += [(path, "run a01_create_training_files.py") for path in levels]
    rows += [(paths.image_params(OUTPUT_PATH, split), "run a02_find_image_parameters.py") for split in ("train", SPLIT)]
    rows += [(Path(OUTPUT_PATH) / "weights", "run a03_train_m2det.py")]
    rows += [(paths.submission(OUTPUT_PATH, SPLIT), "run a04, a05 and a06")]
    for path, remedy in rows:
        print(f"found    {path}" if path.exists() else f"MISSING  {path}\n           {remedy}")


if __name__ == "__main__":
    run_script(main)
