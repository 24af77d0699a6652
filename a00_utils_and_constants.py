"""The paths and constants that you edit: the defaults of every script.

Run `python a00_utils_and_constants.py` to see every path: what was found, what is missing, where to get it.
"""

import os

# === Edit here: the data set =========================================================================================
DATASET_PATH = os.environ.get("OID_PATH") or "data/open_images"  # change this to the location of Open Images
OUTPUT_PATH = os.environ.get("OID_OUTPUT") or os.path.normpath(DATASET_PATH) + "_output"  # a01 to a07 write here
SPLIT = "validation"  # the images of a04 to a07: "validation" to measure, "test" for the submission

# === Edit here: what to train (a01, a03); None = a03 chooses, and prints the reason ==================================
LEVELS = ("1", "2", "all")  # a01: heights in the class hierarchy ("1" = leaf classes), "all" classes, or "rare"
LEVEL = "1"  # a03: the level whose classes the network learns; a05 adds their ancestors
TIME_BUDGET = "20m"  # how long a03 trains: "90s", "8h", "3d"; "none" = by the number of images
BACKBONE = None  # a name from models/backbones.py; "vgg16" and "resnet101" in the paper
BACKBONE_WEIGHTS = "none"  # "none" = random, "imagenet" = downloaded once, or a .h5 or .keras file
IMAGE_SIZE = None  # side of the network's square input in pixels; 320, 512 and 800 in the paper
TUMS, SCALES, CHANNELS = None, None, None  # U-shape modules, maps per module, channels per map; 8, 6, 128 in the paper
VARIANT = None  # None or "paper" = the network of its figures, "released" = that of the authors' code (8, 6, 256)
HEAD = "auto"  # "conv" as published; "shared" by the scales, for hundreds of classes; "light", for small networks
ANCHORS = None  # "square" = one per cell, "official" = the published six, or a file that a02 makes; None = by RECIPE
RECIPE = "own"  # how a03 trains; "published" = as the authors did
EPOCHS = None  # a number replaces TIME_BUDGET; a checkpoint and a validation follow each epoch
STEPS_PER_EPOCH = None  # with EPOCHS; 0 or None = each training image once
BATCH_SIZE = None  # images per step
PRECISION = None  # "float32", or "bfloat16" = mixed, which some machines compute faster
LEARNING_RATE = None  # the highest, after the warm-up
LABEL_RULES = ("verified", "ancestors", "regions")  # Open Images' rules for negatives; "depictions" is another one
SAMPLING, SAMPLING_EXPONENT = "images", 0.5  # "classes" draws rare classes more often
VALIDATION_IMAGES = 1000  # at most this many choose the best epoch; 0 = all

# === Edit here: predictions, ensemble, metric (a04 to a07) ===========================================================
SCORE_THRESHOLD = 0.01  # a04 drops boxes below; 0.01 gives a better mAP than 0.05, and takes longer
NMS_IOU = 0.55  # a04: of two boxes of a class that overlap more, the one with the lower score is dropped
VOTE_IOU = 0.6  # a04: a kept box moves to the mean of the boxes that overlap it by at least this; 1 = off
MIRROR = True  # a04 also predicts on the mirrored image: slightly better boxes in twice the time
MAX_BOXES = 300  # a04: per image
EXPANDED_NMS_IOU = 0.75  # a05: like NMS_IOU, for classes that got boxes from their descendants
FUSION_IOU = 0.55  # a06 fuses boxes of several models that overlap more
GROUP_OF_WEIGHT = 1.0  # a07: 1 as in the challenges of 2018 and 2019, 0 as in the older Open Images V2 metric
ORIENTATION = "stored"  # pixels as "stored" in the file, to which Open Images' boxes refer, or turned by "exif"

# === From here on nothing needs editing ==============================================================================
DATASET_PATH, OUTPUT_PATH = os.path.expanduser(DATASET_PATH), os.path.expanduser(OUTPUT_PATH)

from pathlib import Path

from oid import paths
from oid.command_line import run_script


def main() -> None:
    """Prints every path that the scripts use: found or missing, and how to get a missing one."""
    download = "download it from https://storage.googleapis.com/openimages/web/download.html"
    files = [paths.annotation_file(DATASET_PATH, name) for name in (paths.HIERARCHY, paths.CLASS_DESCRIPTIONS)]
    files += [paths.box_annotations(DATASET_PATH, split) for split in ("train", "validation")]
    optional = [paths.image_label_annotations(DATASET_PATH, split) for split in ("train", "validation")]
    optional += [paths.annotation_file(DATASET_PATH, paths.CHALLENGE_CLASS_DESCRIPTIONS)]
    images = [Path(DATASET_PATH) / split for split in ("train", "validation", "test")]
    rows = [(path, download) for path in files] + [(path, f"optional: {download}") for path in optional]
    rows += [(path, "images: a01 writes the ids that the official downloader takes") for path in images]
    rows += [(paths.level_folder(OUTPUT_PATH, level), "run a01_create_training_files.py") for level in LEVELS]
    rows += [(paths.image_params(OUTPUT_PATH, split), "run a02_find_image_parameters.py") for split in ("train", SPLIT)]
    rows += [(Path(OUTPUT_PATH) / "weights", "run a03_train_m2det.py")]
    rows += [(paths.submission(OUTPUT_PATH, SPLIT), "run a04, a05 and a06")]
    for path, remedy in rows:
        print(f"found    {path}" if path.exists() else f"MISSING  {path}\n           {remedy}")


if __name__ == "__main__":
    run_script(main)
