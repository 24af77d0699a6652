"""a02: a row per readable image, a reason for every other, and what it tells about images, boxes and anchors."""

import csv
import hashlib
import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import a02_find_image_parameters as a02
from oid import paths
from oid.anchors.grids import retinanet_anchors
from oid.files import InputError
from training import choose


def rows_of(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


# === Images ===========================================================================================================
@pytest.fixture
def images(tmp_path):
    """Three images and six other files; the flags of a02."""
    train = tmp_path / "data/train"
    (train / "abc").mkdir(parents=True)
    noise = Image.effect_noise((40, 30), 50)
    noise.convert("RGB").save(train / "abc/abc123.JPG")
    noise.save(train / "gray.jpg")
    noise.convert("RGBA").save(train / "rgba.png")
    (train / "empty.jpg").write_bytes(b"")
    (train / "text.jpg").write_text("no image")
    (train / "cut.jpg").write_bytes((train / "gray.jpg").read_bytes()[:-100])
    (train / "gray.txt").write_text("beside its image")
    (train / os.fsdecode(b"\xff.jpg")).write_bytes(b"")
    noise.save(train / "gif.jpg", format="GIF")
    (tmp_path / "data/validation").mkdir()
    noise.save(tmp_path / "data/validation/007.jpg")
    return {"dataset_path": str(tmp_path / "data"), "output_path": str(tmp_path / "out")}


def test_rows_and_problems(images, tmp_path, capsys):
    a02.main(**images, statistics=False)
    rows = rows_of(tmp_path / "out/train_image_params.csv")
    assert list(rows[0]) == ["id", "width", "height", "channel", "size", "md5"]
    content = (tmp_path / "data/train/abc/abc123.JPG").read_bytes()
    assert list(rows[0].values()) == ["abc123", "40", "30", "3", str(len(content)), hashlib.md5(content).hexdigest()]
    assert [(row["id"], row["channel"]) for row in rows[1:]] == [("gray", "1"), ("rgba", "4")]
    problems = rows_of(tmp_path / "out/train_image_problems.csv")
    reasons = {row["path"].split("/")[-1]: row["reason"] for row in problems}
    assert reasons.keys() == {"cut.jpg", "empty.jpg", "text.jpg", "gray.txt", "\\udcff.jpg", "gif.jpg"}
    assert "cut short" in reasons["cut.jpg"]
    assert "no JPEG" in reasons["gif.jpg"]
    assert [row["id"] for row in rows_of(tmp_path / "out/validation_image_params.csv")] == ["007"]
    assert not (tmp_path / "out/validation_image_problems.csv").exists()
    printed = capsys.readouterr().out
    assert "3 measured, 0 unchanged" in printed
    assert "6 cannot be used" in printed
    assert "test is not there" in printed


# === Boxes and anchors ================================================================================================
HEADER = "ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax,IsOccluded,IsTruncated,IsGroupOf,IsDepiction,IsInside"


@pytest.fixture
def made(tmp_path):
    """A level of two classes and one without boxes, and images as black rectangles; the flags of a02."""
    data, output = tmp_path / "data", tmp_path / "out"
    boxes = [("thin", x, 0.1, x + 0.02, 0.9) for x in (0.1, 0.2, 0.3)]
    boxes += [("square", x, 0.1, x + 0.25, 0.6) for x in (0.1, 0.2, 0.3, 0.4)]
    lines = [f"one,x,/m/{label},1,{x0},{x1},{y0},{y1},0,0,0,0,0" for label, x0, y0, x1, y1 in boxes]
    for split in ("train", "validation"):
        (data / split).mkdir(parents=True)
        Image.new("RGB", (100, 50)).save(data / split / "one.png")
        path = paths.level_boxes(output, "1", split)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join([HEADER, *lines, ""]))
    classes = paths.level_class_descriptions(output, "1")
    classes.write_text("/m/square,Square\n/m/none,None\n/m/thin,Thin\n")
    return {"dataset_path": str(data), "output_path": str(output), "splits": ("train", "validation")}


def test_the_table_has_each_class_of_each_split_worst_first(made, capsys):
    a02.main(**made)
    rows = rows_of(paths.level_coverage(made["output_path"], "1"))
    assert [(row["split"], row["name"]) for row in rows] == [
        (split, name) for split in ("train", "validation") for name in ("Thin", "Square", "None")
    ]
    thin, square, none = rows[:3]
    assert (thin["boxes"], thin["covered"], thin["median_width"], thin["median_height"]) == ("3", "0.0", "3.84", "76.8")
    assert (square["boxes"], square["covered"]) == ("4", "1.0")  # 48 x 48 pixels, among squares of 32 and 64
    assert (none["boxes"], none["covered"], none["median_width"]) == ("0", "", "")
    printed = capsys.readouterr().out
    assert "square, 1 per cell: 57.1% of train" in printed
    assert "level 1, train: 7 boxes" in printed


def test_the_page_needs_no_other_file_and_is_the_same_again(made):
    a02.main(**made)
    page = Path(made["output_path"], "data_set.html").read_text()
    assert page.count("data:image/png;base64,") == 4
    assert "http" not in page
    assert page.index("worst-covered classes") < page.index("sizes of the images")
    assert "<td>official</td><td>6</td>" in page
    a02.main(**made)
    assert Path(made["output_path"], "data_set.html").read_text() == page


def test_a_file_of_anchors_is_compared(made, tmp_path, capsys):
    (tmp_path / "own.json").write_text(json.dumps({"sizes": [[[0.02, 0.4]]] * 2}))
    a02.main(**made, anchors=str(tmp_path / "own.json"), scales=2)
    assert "own.json, 1 per cell: 42.9% of train" in capsys.readouterr().out


def test_retinanet_has_its_own_anchors_and_maps(made, monkeypatch):
    """Its sixth map has 2 x 2 cells at 320 pixels, M2Det's has one; its "official" set has nine anchors per cell."""
    sets = []
    real = a02.report.report_level
    monkeypatch.setattr(a02.report, "report_level", lambda *args, **kw: sets.append(args[3]) or real(*args, **kw))
    a02.main(**made, detector="retinanet", image_size=320, scales=6, anchors="official")
    assert [anchors.grids for anchors in sets[0]] == [
        retinanet_anchors(320, 6, name) for name in ("official", "square")
    ]
    page = Path(made["output_path"], "data_set.html").read_text()
    assert "<td>official</td><td>9</td>" in page


def test_anchors_are_for_a03s_small_network_and_go_if_there_are_too_few_boxes(made, capsys):
    path = paths.level_anchors(made["output_path"], "1")
    a02.main(**made)
    content = json.loads(path.read_text())
    assert (content["image_size"], content["scales"]) == (choose.SMALL.image_size, choose.SMALL.scales)
    assert np.shape(content["sizes"]) == (choose.SMALL.scales, 1, 2)
    a02.main(**made, anchors_per_cell=9)
    assert not path.exists()
    assert "no map has boxes of 9 different sizes" in capsys.readouterr().out


def test_a_later_run_on_one_split_gives_the_same(made):
    """Anchors are made for train also when only validation was measured again."""
    a02.main(**made)
    files = [paths.level_anchors(made["output_path"], "1"), paths.level_coverage(made["output_path"], "1")]
    before = [path.read_bytes() for path in files]
    a02.main(**{**made, "splits": ("validation",)})
    assert [path.read_bytes() for path in files] == before
    assert "over train" in json.loads(before[0])["made_by"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scales": 9}, "9 scales do not fit 192 pixels.*change --scales or --image_size"),
        ({"output_path": __file__}, "is not a writable folder: give another --output_path"),
        ({"scales": 0}, "--scales is 0"),
        ({"levels": ("2",)}, r"--levels is 2: .* run a01 with --levels 2"),
        ({"threads": -2}, "--threads is -2"),
        ({"splits": ("sun",)}, "has no images in sun: check --dataset_path and --splits"),
        ({"image_size": 0}, "--image_size is 0"),
        ({"anchors_per_cell": 0}, "--anchors_per_cell is 0"),
        ({"seed": -1}, "--seed is -1"),
        ({"anchors": "hexagon"}, "hexagon are neither square nor official.*change --anchors"),
    ],
)
def test_mistakes_are_found_before_anything_is_measured(made, change, message):
    with pytest.raises(InputError, match=message):
        a02.main(**made | change)
    assert not paths.image_params(made["output_path"], "train").exists()
