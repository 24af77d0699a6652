"""Which network a new run has: the part of its settings that depends on `--detector`.

M2Det and RetinaNet train alike. A run that starts from a converted checkpoint of keras-retinanet goes on as that
network (`models.legacy_retinanet`): its backbone with frozen batch norm, its nine anchors per cell, its coding.
"""

from models.backbones import BACKBONES
from models.detector import read_settings
from oid.anchors.grids import (
    NAMED_SETS,
    anchor_settings,
    feature_map_sides,
    pyramid_sides,
    retinanet_anchor_settings,
    settings_of_sizes,
)
from oid.files import InputError
from training import plan
from training.settings import source_run

LEGACY = "legacy_retinanet"
OPEN = (None, "auto")  # values of a flag that leave the choice to a03
OF_NETWORK = ("variant", "tums", "scales", "channels", "sfam", "head")  # what two runs of one detector share


def with_source(flags: dict) -> tuple[dict, list[str]]:
    """The flags, with what is open of the network as the run of `--init_from` has it, whose weights then fit.

    A run of the other detector gives its backbone and its size. A converted checkpoint decides everything where no
    backbone is asked for. Without a run, variant and anchors are the usual ones.

    Args:
        flags: a03's.

    Returns:
        the flags, with `normalisation` (what the backbone's weights expect of the pixels; None = the usual), and a
        sentence that says what comes from the run.

    Raises:
        InputError: the run cannot be read, or flags would change a converted network.
    """
    found, run = {}, flags["init_from"]
    if run:
        source = read_settings(source_run(flags))
        converted = source.get("detector") == LEGACY and flags["detector"] == "retinanet" and flags["backbone"] is None
        found = _of_converted(flags, source) if converted else _of_run(flags, source)
    said = {name: value for name, value in found.items() if value is not None and name not in ("padding", "clip")}
    words = ", ".join(f"{name} {_shown(value)}" for name, value in said.items() if value != flags.get(name))
    usual = {"variant": flags["variant"] or "paper", "anchors": flags["anchors"] or "square", "normalisation": None}
    return flags | usual | found, [f"{words}, because the weights of {run} are for these"] if words else []


def _of_converted(flags: dict, source: dict) -> dict:
    """What a converted checkpoint says."""
    for name in ("scales", "channels", "taps"):
        if flags[name] is not None:
            raise InputError(f"--{name} {flags[name]} would change the network of {flags['init_from']}: leave it out")
    if flags["anchors"] not in (None, "official"):
        raise InputError(f"--anchors {flags['anchors']} are not those of {flags['init_from']}: leave it out")
    same = {name: source[name] for name in ("backbone", "padding", "clip")}
    size = {"image_size": flags["image_size"] or source["image_size"]}  # it has none before it was trained on squares
    return {"detector": LEGACY} | same | size | {"scales": 5, "channels": 256, "head": "shared", "anchors": "official"}


def _of_run(flags: dict, source: dict) -> dict:
    """What another run says of what is open."""
    same = source.get("detector", "m2det") == flags["detector"]
    names = ["backbone"] if source["backbone"] in BACKBONES else []
    names += ["image_size", *(OF_NETWORK if same else ())]
    found = {name: source[name] for name in names if name in source and flags[name] in OPEN}
    network = flags | found
    if network["backbone"] == source["backbone"]:
        found["normalisation"] = source["preprocessing"]["normalisation"]
        if same and flags["taps"] is None:
            found["taps"] = source["taps"]
    if "scales" in found and network["image_size"] != source["image_size"]:
        found["scales"] = _scales_that_fit(flags["detector"], network["image_size"], source["scales"])
    if same and flags["anchors"] is None:
        anchors = set_of(source)
        if isinstance(anchors, str) or len(anchors) == (network | found)["scales"]:
            found["anchors"] = anchors
    return found


def _scales_that_fit(detector: str, image_size: int, scales: int) -> int:
    """The largest number of maps, at most `scales`, that an image is large enough for."""
    for fewer in range(scales, 1, -1):
        try:
            sides_of(detector, image_size, fewer)
        except InputError:
            continue
        return fewer
    return 1


def _shown(value) -> str:
    """A setting as a sentence has it."""
    if isinstance(value, list) and not isinstance(value[0], str):
        return "as there"  # sizes of anchors
    return " ".join(value) if isinstance(value, list) else str(value)


def network_settings(flags: dict, chosen: dict, num_classes: int) -> dict:
    """What rebuilds the network, without classes and anchors.

    Args:
        flags: of `with_source`.
        chosen: what `training.plan.fill_in` made of them.
        num_classes: of the level.
    """
    names = {"m2det": ("variant", "tums", "scales", "channels"), LEGACY: ("scales", "channels", "padding", "clip")}
    detector = flags["detector"]
    settings = {name: chosen[name] for name in ("detector", "backbone", "taps", "level", "image_size")}
    settings |= {name: chosen[name] for name in names.get(detector, ("scales", "channels"))}
    settings["head"] = plan.head_for(flags, chosen, num_classes) if flags["head"] == "auto" else flags["head"]
    if detector == "m2det":
        settings["sfam"] = flags["variant"] == "paper" if flags["sfam"] is None else flags["sfam"]
    return settings | {"box_coding": "corners" if detector == LEGACY else "distances", "score_activation": "sigmoid"}


def anchors_of(detector: str, image_size: int, scales: int, anchors: str | list) -> dict:
    """Describes a set of anchors of a detector; arguments and errors as `oid.anchors.grids.anchor_settings`.

    `anchors` can also be the sizes themselves, see `oid.anchors.grids.settings_of_sizes`.
    """
    if isinstance(anchors, list):
        return settings_of_sizes(anchors, sides_of(detector, image_size, scales))
    describe = anchor_settings if detector == "m2det" else retinanet_anchor_settings
    return describe(image_size, scales, anchors=anchors)


def set_of(settings: dict) -> str | list:
    """Which anchors a run on squares has, for `anchors_of`: the name of a set, or sizes of its own."""
    network = settings.get("detector", "m2det"), settings["image_size"], settings["scales"]
    named = (name for name in NAMED_SETS if settings["anchors"] == anchors_of(*network, name))
    return next(named, settings["anchors"]["sizes"])


def sides_of(detector: str, image_size: int, scales: int) -> list[int]:
    """Sides of a detector's maps, largest first."""
    return (feature_map_sides if detector == "m2det" else pyramid_sides)(image_size, scales)


def same_boxes(old: dict, new: dict) -> bool:
    """Whether the box outputs of two runs mean the same; a converted network's anchors do in pixels of any picture."""
    if old.get("detector") == new.get("detector") == LEGACY:
        return True
    return (old["anchors"], old["box_coding"]) == (new["anchors"], new["box_coding"])
