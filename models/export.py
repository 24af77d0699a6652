"""Writes a network with its decoding as a file that needs neither Keras nor this project: ONNX or a SavedModel.

The file takes images as the network sees them and gives their best boxes. Its texts name the classes and say how an
image is resized. An ONNX file also has the suppression inside: `kept` are the boxes that stay. A SavedModel has none,
because Keras has no such operation. Neither looks at the mirrored image, nor moves boxes by voting, as a04 does.

docs/export.md shows how to use the files.
"""

import dataclasses
import json
import logging
import warnings
from pathlib import Path
from typing import Literal

import keras
from keras import ops

from models.any_shape_detector import AnyShapeDetector
from models.backbones import BACKBONES
from models.box_deltas import DECODERS
from models.decoding import TopBoxes, TopPairs
from models.detector import MOST_BOXES, Detector
from models.fold import folded
from models.keras_internals import all_layers, onnx_without_copies
from models.preprocessing import PREPROCESSING
from models.run_settings import BoxDeltas, RunSettings
from oid.anchors.grids import anchors_of_picture
from oid.files import InputError, output_file, replacing, replacing_folder
from oid.images.letterbox import GREY

Format = Literal["onnx", "tf_saved_model"]
ABOUT = Path("assets.extra") / "about.json"  # where TensorFlow leaves room for files that are not its own
OPSET = 15  # of ONNX: the default of tf2onnx

# Finds the boxes of each class that stay; their scores stand in a row of that class, 0 in other rows and without area.
SUPPRESSION = """suppression (float[batch, n, 4] boxes, int32[batch, n] labels, float[batch, n] scores)
    => (int64[k, 2] kept) {{
    nms_0 = Constant <value_float = 0.0> ()
    nms_axis = Constant <value_ints = [1]> ()
    nms_starts, nms_ends = Split <axis = 2> (boxes)
    nms_lengths = Sub (nms_ends, nms_starts)
    nms_shortest = ReduceMin <axes = [2], keepdims = 0> (nms_lengths)
    nms_has_area = Greater (nms_shortest, nms_0)
    nms_scores = Where (nms_has_area, scores, nms_0)
    nms_scores_row = Unsqueeze (nms_scores, nms_axis)
    nms_classes = Constant <value_int = {num_classes}> ()
    nms_off_on = Constant <value_floats = [0.0, 1.0]> ()
    nms_labels = Cast <to = 7> (labels)
    nms_is_class = OneHot <axis = 1> (nms_labels, nms_classes, nms_off_on)
    nms_by_class = Mul (nms_is_class, nms_scores_row)
    nms_most = Constant <value_ints = [2147483647]> ()
    nms_iou = Constant <value_floats = [{nms_iou}]> ()
    nms_score = Constant <value_floats = [{score_threshold}]> ()
    nms_selected = NonMaxSuppression (boxes, nms_by_class, nms_most, nms_iou, nms_score)
    nms_columns = Constant <value_ints = [0, 2]> ()
    nms_pairs = Gather <axis = 1> (nms_selected, nms_columns)
    nms_n = Shape <start = 1, end = 2> (scores)
    nms_factors = Concat <axis = 0> (nms_n, nms_axis)
    nms_scaled = Mul (nms_pairs, nms_factors)
    nms_key = ReduceSum <keepdims = 0> (nms_scaled, nms_axis)
    nms_length = Shape (nms_key)
    nms_sorted, nms_order = TopK <axis = 0, largest = 0> (nms_key, nms_length)
    kept = Gather <axis = 0> (nms_pairs, nms_order)
}}"""


def write_export(
    detector: Detector | AnyShapeDetector,
    target: str | Path,
    form: Format,
    *,
    nms_iou: float,
    score_threshold: float,
) -> None:
    """Writes the network of a detector with its decoding, in float32.

    Inputs: `images` float32 `(batch, height, width, 3)`, RGB, 0 to 255, as `detector.prepare` makes them; if it
    letterboxes, also `sizes` float32 `(batch, 2)`, height and width of each image before.

    Outputs: `boxes` float32 `(batch, n, 4)`, xyxy normalised to the image before `prepare` and clipped to it, `scores`
    float32 `(batch, n)`, descending, and `labels` int32 `(batch, n)`, indices of the classes. ONNX also gives `kept`,
    int64 `(k, 2)`: image and box of those that stay after the suppression, the best of each image first.

    Args:
        detector: its weights are written as they are now.
        target: a file `.onnx`, or a folder that is new, empty or an earlier export.
        form: "onnx" or "tf_saved_model".
        nms_iou: of the suppression in an ONNX file: of two boxes of one class that overlap more, the better one stays.
        score_threshold: of the suppression: boxes with a lower score do not stay.

    Raises:
        InputError: Keras runs on another backend than TensorFlow, a package is missing, something else is at `target`,
            or the network has layers that the format cannot hold.
    """
    target = Path(target)
    _check(target, form)
    model = _exported_model(detector)
    about = description(detector.settings)
    if form == "tf_saved_model":
        with replacing_folder(target) as path:
            _export_quietly(model, path, form)
            (path / ABOUT).parent.mkdir(exist_ok=True)
            (path / ABOUT).write_text(json.dumps(about, indent=1), encoding="utf-8")
        return
    for layer in all_layers(model):  # Keras compiles these by XLA, for which ONNX has no operation
        if isinstance(layer, keras.layers.Conv2D) and layer.groups > 1:
            raise InputError(f"{layer.name} is a convolution in groups, which ONNX cannot hold: write a SavedModel")
    with replacing(target) as path:
        with onnx_without_copies():
            _export_quietly(model, path, form)
        limits = {"nms_iou": float(nms_iou), "score_threshold": float(score_threshold)}
        _complete_onnx(path, about, SUPPRESSION.format(num_classes=len(detector.class_labels), **limits))


def _check(target: Path, form: Format) -> None:
    """Refuses before the work what cannot be written."""
    if keras.backend.backend() != "tensorflow":
        raise InputError(
            f"an export needs Keras on TensorFlow, here it runs on {keras.backend.backend()}: set "
            "KERAS_BACKEND=tensorflow, which reads the same runs"
        )
    if form == "onnx":
        if target.suffix != ".onnx":
            raise InputError(f"{target} does not end in .onnx: name a file that does")
        try:
            import onnx  # noqa: F401
            import tf2onnx  # noqa: F401
        except ImportError as error:
            raise InputError(f"ONNX needs {error.name}, which is not installed: pip install tf2onnx onnx") from None
        output_file(target, "give another place")
        return
    if target.exists() and not target.is_dir():
        raise InputError(f"{target} is a file: a SavedModel is a folder, name a new one")
    if target.is_dir() and any(target.iterdir()) and not (target / ABOUT).is_file():
        raise InputError(f"{target} holds other files than an earlier export: name a new folder")
    output_file(target / "saved_model.pb", "give another place")


# === The graph =======================================================================================================
def _exported_model(detector: Detector | AnyShapeDetector) -> keras.Model:
    """From `images` to boxes, scores and labels, all in float32."""
    settings, network = detector.settings, folded(detector.network, dtype="float32")
    inputs = {"images": keras.Input(network.input.shape[1:], name="images")}
    outputs = network(inputs["images"])
    if settings.any_shape:
        end = BoxesOfAnyShape(settings.network.scales, settings.box_deltas)
        return keras.Model(inputs, end({"image": inputs["images"], **outputs}))
    found = TopBoxes(settings.anchors, MOST_BOXES, settings.box_deltas, settings.scores)(outputs)
    if settings.inputs.resize == "letterbox":
        inputs["sizes"] = keras.Input((2,), name="sizes")
        found["boxes"] = BoxesOfLetterbox(settings.network.image_size)([found["boxes"], inputs["sizes"]])
    return keras.Model(inputs, {**found, "boxes": ops.clip(found["boxes"], 0.0, 1.0)})


class BoxesOfLetterbox(keras.layers.Layer):
    """Moves boxes from a letterboxed square to the image in it, as `oid.images.letterbox.boxes_of_picture` does.

    Args:
        side: of the square in pixels.
    """

    def __init__(self, side: int, **kwargs):
        super().__init__(dtype="float32", autocast=False, **kwargs)
        self.side = side

    def call(self, inputs):
        """`[boxes (batch, n, 4), sizes (batch, 2)]` -> `(batch, n, 4)`, not clipped."""
        boxes, sizes = inputs
        longest = ops.max(sizes, axis=-1, keepdims=True)
        extent = ops.clip(ops.round(sizes * self.side / longest), 1, self.side)  # height, width
        extent = ops.flip(extent, axis=-1)[:, None]
        offset = ops.floor((self.side - extent) / 2)
        extent, offset = (ops.concatenate([values, values], axis=-1) for values in (extent, offset))  # (batch, 1, 4)
        return (boxes * self.side - offset) / extent


class BoxesOfAnyShape(keras.layers.Layer):
    """Decodes the best boxes of images of any shape, as `TopBoxes` does for one shape, with anchors in the graph.

    Args:
        scales: levels of the pyramid.
        box_deltas: see `models.box_deltas`.
    """

    def __init__(self, scales: int, box_deltas: BoxDeltas, **kwargs):
        super().__init__(dtype="float32", autocast=False, **kwargs)
        self.scales = scales
        self.decode = DECODERS[box_deltas]

    def call(self, inputs):
        """`image` `(batch, height, width, 3)` with the network's `classes` and `boxes` -> as `TopBoxes`, clipped."""
        _, height, width, _ = ops.shape(inputs["image"])
        num_classes = inputs["classes"].shape[-1]
        top = TopPairs(MOST_BOXES).call(inputs)
        anchors = anchors_of_picture(self.scales, height, width, ops)
        anchors = ops.take(anchors, top["pairs"] // num_classes, axis=0)  # (batch, n, 4)
        sides = ops.cast(ops.stack([width, height, width, height]), "float32")
        return {
            "boxes": ops.clip(self.decode(top["offsets"], anchors) / sides, 0.0, 1.0),
            "scores": ops.sigmoid(top["logits"]),
            "labels": ops.cast(top["pairs"] % num_classes, "int32"),
        }


def _export_quietly(model: keras.Model, path: Path, form: Format) -> None:
    """Keras' export, without the remarks of the packages that it uses."""
    specs = {name: keras.InputSpec(shape=x.shape, dtype="float32", name=name) for name, x in model.input.items()}
    options = {"opset_version": OPSET} if form == "onnx" else {}
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(action="ignore"):
            model.export(str(path), format=form, verbose=False, input_signature=[specs], **options)
    finally:
        logging.disable(level)


def _complete_onnx(path: Path, about: dict[str, str], suppression: str) -> None:
    """Adds the suppression and the texts to a file, and names its dimensions."""
    import onnx

    model = onnx.load(path)
    names = dict.fromkeys((value.name for value in model.graph.output), ("batch", "n", "corners"))
    names |= {"images": ("batch", "height", "width", "channels"), "sizes": ("batch", "sides")}
    for value in (*model.graph.input, *model.graph.output):
        for dim, name in zip(value.type.tensor_type.shape.dim, names[value.name], strict=False):
            if name == "batch" or not dim.HasField("dim_value"):
                dim.dim_param = name
    added = onnx.parser.parse_graph(suppression)
    model.graph.node.extend(added.node)
    model.graph.output.extend(added.output)
    onnx.helper.set_model_props(model, about)
    onnx.checker.check_model(model)
    onnx.save(model, path)


def description(settings: RunSettings) -> dict[str, str]:
    """The texts in the file, "classes" and "preprocessing", as JSON; see docs/export.md."""
    network = settings.network
    normalisation = network.normalisation or BACKBONES[network.backbone].preprocessing
    preprocessing = dataclasses.asdict(settings.inputs) | {
        "side": network.image_size,
        "letterbox_colour": GREY,
        "normalisation": f"inside the model: {PREPROCESSING[normalisation]}",
    }
    classes = [entry._asdict() for entry in settings.classes]
    return {"classes": json.dumps(classes), "preprocessing": json.dumps(preprocessing)}
