"""The networks and what they find in images; on `keras`, `keras.ops` and NumPy only, so on every backend of Keras.

Importing this package starts no framework: `load_model` imports Keras when it is called.
"""


def load_model(run, *, output_path=None, **options):
    """Loads a run by its name or folder, or a checkpoint file; see `models.load.load_model`.

    >>> from models import load_model
    >>> detector = load_model("m2det_level_1")
    >>> boxes, scores, labels = detector.predict_on_batch(images)
    >>> detections = detector.detect("photo.jpg")

    `output_path` is by default that of a00.
    """
    from models.load import load_model as load

    if output_path is None:
        from a00_utils_and_constants import OUTPUT_PATH as output_path
    return load(run, output_path=output_path, **options)
