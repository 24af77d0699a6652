"""Proves that a damaged annotation file never ends in a traceback and never leaves half a data set: either the data set
is made, and a01 can read it, or one sentence says what is wrong."""

import shutil

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from oid import paths
from oid.annotations import read_boxes, read_image_labels
from oid.files import InputError
from oid.sources.write import convert
from tests.helpers.own_data import WRITERS, converted

FILES = {
    "csv": ("annotations.csv", "val_annotations.csv", "classes.csv"),
    "voc": ("Annotations/a.xml", "Annotations/v.xml", "ImageSets/Main/train.txt"),
    "coco": ("annotations/instances_train.json", "annotations/instances_val.json"),
    "kitti": ("train/labels/a.txt", "val/labels/v.txt", "train/images/b.png"),
}
PIECES = b"\x00 \xff\xfe , - 1e999 nan < {} null \\ true .. / cat ;;;".split()
PIECES += [b"", b'"', b"\n\n", b"9" * 400, b"9" * 5000, b"<!DOCTYPE a>", b"[" * 50, "é".encode(), b'"id": "x",']
damage = st.tuples(st.floats(0, 1), st.integers(0, 30), st.sampled_from(PIECES))


@pytest.mark.parametrize("form", WRITERS)
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_a_damaged_file_is_a_sentence_or_a_data_set(form, tmp_path, data):
    shutil.rmtree(tmp_path, ignore_errors=True)
    source, data_set = WRITERS[form](tmp_path / "source"), tmp_path / "data"
    for name in data.draw(st.lists(st.sampled_from(FILES[form]), min_size=1, max_size=2)):
        content = (source / name).read_bytes()
        for place, length, piece in data.draw(st.lists(damage, min_size=1, max_size=3)):
            start = int(place * len(content))
            content = content[:start] + piece + content[start + length :]
        (source / name).write_bytes(content)
    sentence = ""
    try:
        convert(form, source, data_set)
    except InputError as error:
        sentence = str(error)
    if sentence:
        assert "\n" not in sentence
        assert not data_set.exists()
        return
    for split in ("train", "validation"):
        read_boxes(paths.box_annotations(data_set, split))
        read_image_labels(paths.image_label_annotations(data_set, split))
        for boxes in converted(data_set, split).values():
            assert all(0 <= x0 < x1 <= 40 and 0 <= y0 < y1 <= 30 for _, (x0, y0, x1, y1) in boxes)
