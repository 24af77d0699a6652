"""Proves what the benchmarks of the training rest on: VOC's layout is read right, and a table of the README is replaced
where its marks are, and nothing else of the file."""

import json

import pytest

from benchmarks.results import find_table, replace_table
from benchmarks.training_runs import ROOT
from benchmarks.voc import convert
from oid import layout
from oid.annotations import read_class_descriptions
from oid.files import InputError


def test_only_what_is_between_the_marks_changes(tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text("above\n<!-- one -->\nold\n<!-- end of one -->\nbelow\n<!-- two -->\nkept\n<!-- end of two -->\n")
    replace_table(readme, "one", "| new |")
    kept = "below\n<!-- two -->\nkept\n<!-- end of two -->\n"
    assert readme.read_text() == f"above\n<!-- one -->\n| new |\n<!-- end of one -->\n{kept}"
    replace_table(readme, "one", "| newer |")
    assert readme.read_text() == f"above\n<!-- one -->\n| newer |\n<!-- end of one -->\n{kept}"


@pytest.mark.parametrize("text", ["nothing", "<!-- one -->", "<!-- end of one -->\n<!-- one -->", "<!-- one -->" * 2])
def test_a_file_without_the_marks_stays_as_it_is(tmp_path, text):
    readme = tmp_path / "README.md"
    readme.write_text(text)
    with pytest.raises(InputError, match="<!-- end of one -->"):
        replace_table(readme, "one", "| new |")
    assert readme.read_text() == text


VOC = """<annotation><size><width>200</width><height>100</height></size>
<object><name>Red cell</name><bndbox><xmin>1</xmin><ymin>11</ymin><xmax>100</xmax><ymax>60</ymax></bndbox></object>
<object><name>White</name><bndbox><xmin>50</xmin><ymin>5</ymin><xmax>50</xmax><ymax>9</ymax></bndbox></object>
</annotation>"""


def test_voc_becomes_open_images(tmp_path):
    """Corners count from 1 and include the last pixel; the box without width goes; each class is verified."""
    voc = tmp_path / "voc"
    for folder in ("Annotations", "ImageSets/Main", "JPEGImages"):
        (voc / folder).mkdir(parents=True)
    (voc / "Annotations" / "a.xml").write_text(VOC)
    (voc / "Annotations" / "b.xml").write_text(VOC.replace("<xmin>50</xmin>", "<xmin>41</xmin>"))
    (voc / "ImageSets" / "Main" / "one.txt").write_text("a\nb\n")
    for name in "ab":
        (voc / "JPEGImages" / f"{name}.jpg").write_bytes(b"")
    convert(voc, tmp_path / "data", {"train": "one"})
    rows = layout.box_annotations(tmp_path / "data", "train").read_text().splitlines()
    assert [row.split(",")[0] + row.split(",")[2] for row in rows[1:]] == ["a/m/red_cell", "b/m/red_cell", "b/m/white"]
    assert [float(x) for x in rows[1].split(",")[4:8]] == pytest.approx([0, 0.5, 0.1, 0.6])
    labels = layout.image_label_annotations(tmp_path / "data", "train").read_text().splitlines()[1:]
    assert sorted(label[0] + label[-1] for label in labels) == ["a0", "a1", "b1", "b1"]
    names = read_class_descriptions(layout.annotation_file(tmp_path / "data", layout.CLASS_DESCRIPTIONS))
    assert names == {"/m/red_cell": "Red cell", "/m/white": "White"}
    tree = json.loads(layout.annotation_file(tmp_path / "data", layout.HIERARCHY).read_text())
    assert [node["LabelName"] for node in tree["Subcategory"]] == ["/m/red_cell", "/m/white"]
    assert (tmp_path / "data" / "train" / "a.jpg").is_symlink()


def test_a_folder_that_is_not_vocs_is_one_sentence(tmp_path):
    with pytest.raises(InputError, match=r"name a folder in Pascal VOC's layout by --voc"):
        convert(tmp_path, tmp_path / "data", {"train": "trainval"})


@pytest.mark.parametrize("name", ["demonstration", "photographs", "Pascal VOC"])
def test_the_readme_has_a_place_for_each_table(name):
    before, after = find_table(ROOT / "README.md", name)
    assert before.endswith(f"<!-- {name} -->")
    assert after.startswith(f"<!-- end of {name} -->")
