"""The columns of every CSV file that is read or written, each file's in its own order."""

CORNERS = ("XMin", "YMin", "XMax", "YMax")  # xyxy, the order of every array; files are read by name

# Open Images' own files
BOX_COLUMNS = (  # the 13 of V4; V6 adds the 8 of the extreme clicks
    *("ImageID", "Source", "LabelName", "Confidence", "XMin", "XMax", "YMin", "YMax"),
    *("IsOccluded", "IsTruncated", "IsGroupOf", "IsDepiction", "IsInside"),
)
GROUND_TRUTH_COLUMNS = ("ImageID", "LabelName", "XMin", "XMax", "YMin", "YMax", "IsGroupOf")  # what a07 reads of them
DIFFICULT_COLUMN = "IsDifficult"  # Pascal VOC's mark, which a01 writes after BOX_COLUMNS
IMAGE_LABEL_COLUMNS = ("ImageID", "LabelName", "Confidence")
IMAGE_LABEL_FILE_COLUMNS = ("ImageID", "Source", "LabelName", "Confidence")

# What a01 and a02 write
IGNORED_REGION_COLUMNS = ("ImageID", "LabelName", "XMin", "XMax", "YMin", "YMax", "Reason")
IMAGE_PARAMETER_COLUMNS = ("id", "width", "height", "channel", "size", "md5")
IMAGE_PROBLEM_COLUMNS = ("path", "reason")
SOURCE_IMAGE_COLUMNS = ("Split", "ImageID", "Path", "Width", "Height", "MD5")
SOURCE_PROBLEM_COLUMNS = ("file", "place", "problem", "value", "done")

# Predictions: Kaggle's form, and the form with a row per box
KAGGLE_COLUMNS = ("ImageId", "PredictionString")
PREDICTION_COLUMNS = ("ImageID", "LabelName", "Score", "XMin", "XMax", "YMin", "YMax")

# What a07 writes
CLASS_COLUMNS = ("label", "name", "AP", "num_gt", "predicted", "cost")
CONFUSION_COLUMNS = ("predicted", "predicted_name", "actual", "actual_name", "count", "mean_score")
CURVE_COLUMNS = ("score", "precision", "recall")
