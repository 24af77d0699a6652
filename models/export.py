"""A run as a file that needs neither Keras nor this project: ONNX, or a TensorFlow SavedModel.

The file takes pictures in the size that the network sees and gives the best decoded boxes; the classes, and how a
picture is brought to that size, stand in the file. ONNX also has the suppression inside, as a node of its own:
`kept` are the boxes that stay. A SavedModel has none: Keras knows no suppression, and what serves such a model differs
in those it has; OpenCV's, in the example below, does the same. Neither looks at mirrored pictures, nor moves boxes by
voting, as a04 does.

    import json, cv2, onnxruntime
    session = onnxruntime.InferenceSession("m2det.onnx")
    classes = json.loads(session.get_modelmeta().custom_metadata_map["classes"])
    image = cv2.imread("photo.jpg")[:, :, ::-1]
    pictures = cv2.resize(image, (320, 320), interpolation=cv2.INTER_AREA)[None].astype("float32")
    boxes, labels, scores, kept = session.run(["boxes", "labels", "scores", "kept"], {"pictures": pictures})
    for i in kept[:, 1]:
        print(classes[labels[0, i]]["name"], scores[0, i], boxes[0, i])

`example` writes these lines for a run: its size, its way to resize, its format.
"""

import contextlib
import json
import logging
import textwrap
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import keras
import numpy as np
from keras import ops

from models.backbones import BACKBONES
from models.box_deltas import DECODERS
from models.decoding import TopPairs
from models.detector import MOST_BOXES, SIDES
from models.fold import folded
from models.preprocessing import PREPROCESSING
from oid.anchors.grids import retinanet_sizes
from oid.files import InputError, output_file, replacing, replacing_folder
from oid.images.letterbox import GREY

Format = Literal["onnx", "tf_saved_model"]
ABOUT = Path("assets.extra") / "about.json"  # where TensorFlow leaves room for files that are not its own
INPUT = "pictures"
INSTALL = "pip install tf2onnx onnx"
OPSET = 15  # of ONNX: what tf2onnx writes unless told otherwise


def check_target(path: str | Path, form: Format) -> Path:
    """Where an export may go: a file `.onnx`, or a folder that is new, empty or an earlier export.

    Raises:
        InputError: something else is there, or nothing can be written there.
    """
    path = Path(path)
    if form == "onnx":
        if path.suffix != ".onnx":
            raise InputError(f"--export_path {path} does not end in .onnx, as the file of --export onnx must")
        return output_file(path, "give another place by --export_path")
    if path.exists() and not path.is_dir():
        raise InputError(f"{path} is a file: give --export_path the name of a folder for --export tf_saved_model")
    if path.is_dir() and any(path.iterdir()) and not (path / ABOUT).is_file():
        raise InputError(f"{path} holds other files than an earlier export: give --export_path a new folder's name")
    output_file(path / "saved_model.pb", "give another place by --export_path")
    return path


def write_export(
    detector, target: str | Path, form: Format, *, nms_iou: float, score_threshold: float
) -> dict[str, str]:
    """Writes the network of a detector with its decoding, in float32.

    The file takes `pictures`, float32 `(batch, height, width, 3)`, RGB, 0 to 255, as `Detector.prepare` makes them. It
    gives `boxes` float32 `(batch, n, 4)`, xyxy normalised to the picture of the network and not clipped, `scores`
    float32 `(batch, n)`, descending, and `labels` int32 `(batch, n)`, indices of the classes. ONNX also gives `kept`,
    int64 `(k, 2)`: picture and box of those that stay after the suppression, the best of each picture first.

    Args:
        detector: a `models.detector.Detector`.
        target: see `check_target`.
        form: "onnx" or "tf_saved_model".
        nms_iou: of the suppression in an ONNX file: of two boxes of one class that overlap more, the better one stays.
        score_threshold: of the suppression: boxes with a lower score do not stay.

    Returns:
        What the file says of itself: ONNX's `metadata_props`, `assets.extra/about.json` in a SavedModel. "classes",
        "preprocessing" and "outputs" are JSON, "example" is Python.

    Raises:
        InputError: Keras runs on another backend than TensorFlow, a package is missing, something is in the way, or the
            network has layers that the form cannot hold.
    """
    target = check_target(target, form)
    require_packages(form)
    options = {"nms_iou": nms_iou, "score_threshold": score_threshold}
    model = _exported_model(detector)
    if form == "onnx":
        _refuse_groups(model)
    about = description(detector.settings, target, form, **options)
    if form == "onnx":
        with replacing(target) as path:
            _export_quietly(model, path, form)
            _complete_onnx(path, about, len(detector.class_labels), **options)
    else:
        with replacing_folder(target) as path:
            _export_quietly(model, path, form)
            (path / ABOUT).parent.mkdir(exist_ok=True)
            (path / ABOUT).write_text(json.dumps(about, indent=1), encoding="utf-8")
    return about


def require_packages(form: Format) -> None:
    """To be asked before the work.

    Raises:
        InputError: Keras runs on another backend than TensorFlow, or a package that writes ONNX is missing.
    """
    if keras.backend.backend() != "tensorflow":
        raise InputError(
            f"--export needs Keras on TensorFlow, here it runs on {keras.backend.backend()}: set "
            "KERAS_BACKEND=tensorflow, which reads the same runs"
        )
    if form == "onnx":
        try:
            import onnx  # noqa: F401
            import tf2onnx  # noqa: F401
        except ImportError as error:
            raise InputError(f"--export onnx needs {error.name}, which is not installed: {INSTALL}") from None


def _refuse_groups(model: keras.Model) -> None:
    """Keras compiles convolutions in groups by XLA, for which ONNX has no operation."""
    for layer in model._flatten_layers():
        if getattr(layer, "groups", 1) > 1 and isinstance(layer, keras.layers.Conv2D):
            raise InputError(
                f"--export onnx: the layer {layer.name} is a convolution in groups (ConvNeXt has them), which ONNX's "
                "writer does not know: take --export tf_saved_model"
            )


def _exported_model(detector) -> keras.Model:
    """From `pictures` to boxes, scores and labels, all in float32."""
    model = folded(detector.model, dtype="float32")
    if detector.settings["preprocessing"]["resize"] != SIDES:
        return model
    end = BoxesOfAnyShape(detector.settings["anchors"]["scales"], detector.settings["box_coding"])
    return keras.Model(model.input, end({"image": model.input, **model.output}))


class BoxesOfAnyShape(keras.layers.Layer):
    """The best decoded boxes of pictures of any shape: what `TopBoxes` is where all have one; the anchors are made in
    the graph.

    Args:
        scales: levels of the pyramid.
        box_coding: see `models.box_deltas`.
    """

    def __init__(self, scales: int, box_coding: str, **kwargs):
        super().__init__(dtype="float32", autocast=False, **kwargs)
        self.scales = scales
        self.box_coding = box_coding

    def call(self, inputs):
        """`image` `(batch, height, width, 3)` with the network's `classes` and `boxes` -> as `TopBoxes`."""
        _, height, width, _ = ops.shape(inputs["image"])
        num_classes = inputs["classes"].shape[-1]
        top = TopPairs(MOST_BOXES).call(inputs)
        anchors = ops.take(self._anchors(height, width), top["pairs"] // num_classes, axis=0)  # [B,T,4]
        sides = ops.cast(ops.stack([width, height, width, height]), "float32")
        return {
            "boxes": DECODERS[self.box_coding](top["offsets"], anchors) / sides,
            "scores": ops.sigmoid(top["logits"]),
            "labels": ops.cast(top["pairs"] % num_classes, "int32"),
        }

    def _anchors(self, height, width):
        """As `oid.anchors.grids.anchors_of_picture`."""
        levels = []
        for k, sizes in enumerate(retinanet_sizes(self.scales)):
            stride = 8 * 2**k
            # not -(-side // stride): ONNX divides towards zero
            cells = [ops.arange((side + stride - 1) // stride, dtype="float32") for side in (height, width)]
            y, x = ops.meshgrid(*((cell + 0.5) * stride for cell in cells), indexing="ij")
            half = np.asarray(sizes, "float64") / 2
            base = np.concatenate([-half, half], axis=1).astype("float32")  # [9,4]
            centres = ops.stack([x, y, x, y], axis=-1)[:, :, None]  # [rows,columns,1,4]
            levels.append(ops.reshape(centres + base, (-1, 4)))
        return ops.concatenate(levels)

    def compute_output_spec(self, inputs):
        batch = inputs["image"].shape[0]
        shapes = {"boxes": (batch, None, 4), "scores": (batch, None), "labels": (batch, None)}
        kinds = {"labels": "int32"}
        return {name: keras.KerasTensor(shape, dtype=kinds.get(name, "float32")) for name, shape in shapes.items()}


def _export_quietly(model: keras.Model, path: Path, form: Format) -> None:
    """Keras' export, without the remarks of the packages that it uses."""
    signature = [keras.InputSpec(shape=(None, *model.inputs[0].shape[1:]), dtype="float32", name=INPUT)]
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(action="ignore"), _without_copies(form):
            options = {"opset_version": OPSET} if form == "onnx" else {}
            model.export(str(path), format=form, verbose=False, input_signature=signature, **options)
    finally:
        logging.disable(level)


@contextlib.contextmanager
def _without_copies(form: Format) -> Iterator[None]:
    """Keeps tf2onnx from copying the graph, weights and all, before each of its optimisations: it takes 9 GB to write
    36 million weights then."""
    if form != "onnx":
        yield
        return
    from tf2onnx import optimizer

    optimise = optimizer.optimize_graph
    optimizer.optimize_graph = lambda graph, catch_errors=True, optimizers=None: optimise(graph, False, optimizers)
    try:
        yield
    finally:
        optimizer.optimize_graph = optimise


# === What the file says of itself ====================================================================================
def description(
    settings: dict, target: str | Path, form: Format, *, nms_iou: float, score_threshold: float
) -> dict[str, str]:
    """The texts that `write_export` writes into the file, by key; arguments as there."""
    seen = settings["preprocessing"]
    outputs = {
        "boxes": "float32 (batch, n, 4): x0 y0 x1 y1, 0 to 1 in the network's picture, not clipped",
        "labels": "int32 (batch, n): index of the class",
        "scores": "float32 (batch, n), descending",
    }
    if form == "onnx":
        outputs["kept"] = (
            f"int64 (k, 2): picture and box, after a suppression of each class by IoU {nms_iou:g} of the boxes with a "
            f"score above {score_threshold:g}; the best of each picture first"
        )
    preprocessing = {
        "input": f"{INPUT}: float32 (batch, height, width, 3), RGB, 0 to 255",
        "orientation": "pixels as stored, without the EXIF tag"
        if seen["orientation"] == "stored"
        else "turned as the EXIF tag says",
        "normalisation": f"inside the model: {PREPROCESSING[_normalisation(settings)]}",
        "resize": seen["resize"],
        **_resize_of(settings),
    }
    return {
        "classes": json.dumps(settings["classes"]),
        "preprocessing": json.dumps(preprocessing),
        "outputs": json.dumps(outputs),
        "example": example(settings, target, form, nms_iou=nms_iou, score_threshold=score_threshold),
    }


def _normalisation(settings: dict) -> str:
    """The key of `PREPROCESSING`: the run's own, or what the weights of its backbone were trained on."""
    return settings["preprocessing"]["normalisation"] or BACKBONES[settings["backbone"]].preprocessing


def _resize_of(settings: dict) -> dict[str, object]:
    """How a picture gets the network's size, in words and numbers."""
    if settings["preprocessing"]["resize"] == SIDES:
        numbers = {name: settings["preprocessing"][name] for name in ("min_side", "max_side")}
        words = "kept: the shorter side becomes min_side, or the longer one max_side where it would be more"
        return numbers | {"aspect_ratio": words, "interpolation": "bilinear, of float32 pixels"}
    side, smooth = settings["image_size"], settings["preprocessing"]["interpolation"] == "area"
    words = "bilinear" + (", or by area averaging where the picture has more pixels than its new size" * smooth)
    numbers = {"height": side, "width": side, "interpolation": words}
    if settings["preprocessing"]["resize"] == "letterbox":
        numbers |= {"aspect_ratio": "kept: as large as fits, in the middle", "colour_beside": GREY}
    return numbers


def example(settings: dict, target: str | Path, form: Format, *, nms_iou: float, score_threshold: float) -> str:
    """Lines of Python that find objects in `photo.jpg` with the exported file, and print them."""
    name = Path(target).name
    resize, back = _resize_lines(settings)
    if form == "onnx":
        return textwrap.dedent(f"""\
            import json, cv2, onnxruntime
            session = onnxruntime.InferenceSession("{name}")
            classes = json.loads(session.get_modelmeta().custom_metadata_map["classes"])
            """) + (
            f"{resize}\n"
            'names = ["boxes", "labels", "scores", "kept"]\n'
            f'boxes, labels, scores, kept = session.run(names, {{"{INPUT}": picture[None].astype("float32")}})\n'
            f"{back}for i in kept[:, 1]:\n"
            '    print(classes[labels[0, i]]["name"], scores[0, i], boxes[0, i])\n'
        )
    return textwrap.dedent(f"""\
        import json, cv2, numpy as np, tensorflow as tf
        model = tf.saved_model.load("{name}")
        classes = json.loads(json.load(open("{name}/{ABOUT.as_posix()}"))["classes"])
        """) + (
        f"{resize}\n"
        'found = model.serve(picture[None].astype("float32"))\n'
        'boxes, labels, scores = (found[key].numpy() for key in ("boxes", "labels", "scores"))\n'
        f"{back}corners = boxes[0].clip(0, 1)\n"
        "sizes = np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], axis=1)\n"
        f"for i in cv2.dnn.NMSBoxesBatched(sizes, scores[0], labels[0], {score_threshold:g}, {nms_iou:g}):\n"
        '    print(classes[labels[0, i]]["name"], scores[0, i], boxes[0, i])\n'
    )


def _resize_lines(settings: dict) -> tuple[str, str]:
    """Lines of `example`: from a file to `picture`; from `boxes` in it to boxes in the file's, where they differ."""
    side = settings["image_size"]
    as_stored = ", cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION"
    read = f'image = cv2.imread("photo.jpg"{as_stored * (settings["preprocessing"]["orientation"] == "stored")})'
    read += "[:, :, ::-1]\n"
    if settings["preprocessing"]["resize"] == SIDES:
        least, most = (settings["preprocessing"][name] for name in ("min_side", "max_side"))
        return (
            f"{read}scale = min({least} / min(image.shape[:2]), {most} / max(image.shape[:2]))\n"
            'picture = cv2.resize(image.astype("float32"), None, fx=scale, fy=scale)'
        ), ""
    interpolation = "AREA" if settings["preprocessing"]["interpolation"] == "area" else "LINEAR"
    if settings["preprocessing"]["resize"] == "warp":
        return f"{read}picture = cv2.resize(image, ({side}, {side}), interpolation=cv2.INTER_{interpolation})", ""
    resize = textwrap.dedent(f"""\
        h, w = (round(length * {side} / max(image.shape)) for length in image.shape[:2])
        y, x = ({side} - h) // 2, ({side} - w) // 2
        border = (y, {side} - h - y, x, {side} - w - x, cv2.BORDER_CONSTANT)
        picture = cv2.copyMakeBorder(cv2.resize(image, (w, h), interpolation=cv2.INTER_{interpolation}), *border,
                                     value={GREY})""")
    return read + resize, f"boxes = (boxes * {side} - (x, y, x, y)) / (w, h, w, h)\n"


# === ONNX ============================================================================================================
def _complete_onnx(
    path: Path, about: dict[str, str], num_classes: int, *, nms_iou: float, score_threshold: float
) -> None:
    """Adds the suppression and the texts to a file, and names its first dimension."""
    import onnx

    model = onnx.load(path)
    names = dict.fromkeys((value.name for value in model.graph.output), ("batch", "n", "corners"))
    names[INPUT] = ("batch", "height", "width", "channels")
    for value in (*model.graph.input, *model.graph.output):
        for dim, name in zip(value.type.tensor_type.shape.dim, names[value.name], strict=False):
            if name == "batch" or not dim.HasField("dim_value"):
                dim.dim_param = name
    _add_suppression(model.graph, num_classes, nms_iou, score_threshold)
    onnx.helper.set_model_props(model, about)
    onnx.checker.check_model(model)
    onnx.save(model, path)


def _add_suppression(graph, num_classes: int, nms_iou: float, score_threshold: float) -> None:
    """Adds the output `kept`: NonMaxSuppression of the boxes of each class, then the order of the boxes."""
    from onnx import TensorProto, helper, numpy_helper

    def constant(name: str, value: np.ndarray) -> str:
        graph.initializer.append(numpy_helper.from_array(value, f"suppression/{name}"))
        return f"suppression/{name}"

    def node(kind: str, inputs: list[str], *outputs: str, **attributes: int) -> str:
        outputs = [name if name == "kept" else f"suppression/{name}" for name in outputs]
        graph.node.append(
            helper.make_node(kind, inputs, outputs, f"suppression/{kind}_{len(graph.node)}", **attributes)
        )
        return outputs[0]

    zero, one = constant("zero", np.float32(0)), constant("one", np.float32(1))
    second, third = (constant(f"axis_{axis}", np.array([axis])) for axis in (1, 2))
    many = constant("many", np.array([2**31 - 1]))
    clipped = node("Clip", ["boxes", zero, one], "clipped")
    ends = [node("Gather", [clipped, constant(f"corner_{i}", np.array(i))], f"end_{i}", axis=2) for i in range(4)]
    has_area = node(
        "And", [node("Less", [ends[0], ends[2]], "wide"), node("Less", [ends[1], ends[3]], "high")], "has_area"
    )
    # scores by class (batch, classes, n), 0 where a box is of another class or has no area, as outside the picture
    rows = constant("classes", np.arange(num_classes, dtype="int32").reshape(1, -1, 1))
    of_class = node("Equal", [node("Unsqueeze", ["labels", second], "labels_row"), rows], "of_class")
    counts = node("And", [of_class, node("Unsqueeze", [has_area, second], "has_area_row")], "counts")
    by_class = node("Where", [counts, node("Unsqueeze", ["scores", second], "scores_row"), zero], "by_class")
    limits = [constant("nms_iou", np.array([nms_iou], "float32"))]
    limits.append(constant("score_threshold", np.array([score_threshold], "float32")))
    selected = node("NonMaxSuppression", [clipped, by_class, many, *limits], "selected")
    columns = constant("columns", np.array([0, 2]))
    pairs = node("Gather", [selected, columns], "pairs", axis=1)  # picture, box
    # boxes are in the order of their scores already: sorted by picture * n + box
    n = node("Slice", [node("Shape", ["scores"], "shape"), second, third], "n")
    factors = node("Concat", [n, constant("box_factor", np.array([1]))], "factors", axis=0)
    key = node("ReduceSum", [node("Mul", [pairs, factors], "scaled"), second], "key", keepdims=0)
    node("TopK", [key, node("Shape", [key], "length")], "sorted", "order", axis=0, largest=0)
    node("Gather", [pairs, "suppression/order"], "kept", axis=0)
    graph.output.append(helper.make_tensor_value_info("kept", TensorProto.INT64, ["kept_boxes", 2]))
