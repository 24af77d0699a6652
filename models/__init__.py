"""The networks, on `keras`, `keras.ops` and NumPy only, so that they run on the TensorFlow, JAX and PyTorch backends;
and `detector`, which shows them pictures (OpenCV) and sorts out what they found (`oid.boxes.suppression`).

Importing this package starts no framework: `load_model` imports Keras when called.
"""


def load_model(run, **options):
    """Loads a trained run as a `models.detector.Detector`; see `models.detector.load_model`."""
    from models.detector import load_model as load

    return load(run, **options)
