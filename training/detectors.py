"""Which network a new run has: the part of its settings that depends on `--detector`.

M2Det and RetinaNet train alike. A run that starts from a converted checkpoint of keras-retinanet goes on as that
network (`models.legacy_retinanet`): its backbone with frozen batch norm, its nine anchors per cell, its coding.
"""

from models.anchors import anchor_settings, feature_map_sides, pyramid_sides, retinanet_anchor_settings
from models.detector import read_settings
from oid import layout
from oid.files import InputError
from training import plan

LEGACY = "legacy_retinanet"


def with_source(flags: dict) -> dict:
    """The flags, completed by what a converted checkpoint says that `--init_from` names; it decides where no backbone
    is asked for."""
    if flags["detector"] != "retinanet" or not flags["init_from"] or flags["backbone"] is not None:
        return flags
    folder = layout.run_folder(flags["output_path"], flags["init_from"])
    source = read_settings(folder if (folder / "settings.json").is_file() else folder.parent)
    if source.get("detector") != LEGACY:
        return flags
    for name in ("scales", "channels", "taps"):
        if flags[name] is not None:
            raise InputError(f"--{name} {flags[name]} would change the network of {flags['init_from']}: leave it out")
    if flags["anchors"] not in ("square", "official"):
        raise InputError(f"--anchors {flags['anchors']} are not those of {flags['init_from']}: leave it out")
    same = {name: source[name] for name in ("backbone", "padding", "clip")}
    return flags | same | {"detector": LEGACY, "scales": 5, "channels": 256, "head": "shared", "anchors": "official"}


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


def anchors_of(detector: str, image_size: int, scales: int, anchors: str) -> dict:
    """Describes a set of anchors of a detector; arguments and errors as `models.anchors.anchor_settings`."""
    describe = anchor_settings if detector == "m2det" else retinanet_anchor_settings
    return describe(image_size, scales, anchors=anchors)


def sides_of(detector: str, image_size: int, scales: int) -> list[int]:
    """Sides of a detector's maps, largest first."""
    return (feature_map_sides if detector == "m2det" else pyramid_sides)(image_size, scales)


def same_boxes(old: dict, new: dict) -> bool:
    """Whether the box outputs of two runs mean the same; a converted network's anchors do in pixels of any picture."""
    if old.get("detector") == new.get("detector") == LEGACY:
        return True
    return (old["anchors"], old["box_coding"]) == (new["anchors"], new["box_coding"])
