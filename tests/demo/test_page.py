"""The page with pictures: self-contained, what it draws is what the files say, mistakes are one sentence."""

import base64
import json
import re

import cv2
import numpy as np
import pytest

from demo import make_data_set, page
from oid.files import InputError


@pytest.fixture(scope="module")
def data_set(tmp_path_factory):
    folder = tmp_path_factory.mktemp("page") / "data_set"
    make_data_set.main(dataset_path=str(folder), images=60)
    return folder


@pytest.fixture
def predictions(data_set, tmp_path):
    """One leaf box, one weak leaf box and one inner-class box in each image, and a07's result beside it."""
    label = make_data_set.LABELS
    row = f"{label['Heart']} 0.9 0.1 0.2 0.5 0.6 {label['Ring']} 0.1 0 0 1 1 {label['Symbol']} 0.9 0.1 0.2 0.5 0.6"
    ids = sorted(path.stem for path in (data_set / "validation").iterdir())
    path = tmp_path / "net.expanded.csv"
    path.write_text("ImageId,PredictionString\n" + "".join(f"{i},{row}\n" for i in ids))
    metrics = {"mAP": 0.25, "AP": {label["Heart"]: 0.5, label["Ring"]: None}}
    path.with_name("net.expanded.metrics.json").write_text(json.dumps(metrics))
    return path


def draw_page(data_set, predictions, target, **options):
    page.main(dataset_path=str(data_set), predictions=(str(predictions),), page=str(target), **options)
    return target.read_text()


def test_pictures_are_inside_and_captions_count_boxes(data_set, predictions, tmp_path):
    text = draw_page(data_set, predictions, tmp_path / "page.html", pictures=4)
    pictures = re.findall(r'src="data:image/jpeg;base64,([^"]+)"', text)
    assert len(pictures) == 8  # ground truth and one network
    assert not re.search(r'(src|href)="(?!data:)', text)
    decoded = cv2.imdecode(np.frombuffer(base64.b64decode(pictures[0]), np.uint8), cv2.IMREAD_COLOR)
    assert max(decoded.shape) == page.LONGER_SIDE
    assert text.count("<figcaption>net, 1 box<") == 4  # the weak one and the inner class are left out
    assert "<td>net</td><td>0.2500</td>" in text
    assert "<td>Heart</td><td>0.5000</td>" in text
    assert "<td>Ring</td>" not in text


def test_all_boxes_on_request(data_set, predictions, tmp_path):
    text = draw_page(data_set, predictions, tmp_path / "page.html", pictures=1, score=0.0, all_classes=True)
    assert "net, 3 boxes<" in text


def test_names_are_escaped_in_the_page():
    assert "&lt;b&gt;&amp;" in page.picture_row("<b>&", np.zeros((9, 9, 3), np.uint8), [])[0]


def test_ground_truth_is_drawn_where_it_is(data_set):
    """Only pixels on the outline and in the label change."""
    gray = np.full((200, 400, 3), 128, np.uint8)
    drawn = page.draw(gray, [("Ring", None, (0.25, 0.4, 0.75, 0.9))])
    changed = np.any(drawn != gray, axis=2)
    y, x = np.nonzero(changed)
    assert abs(x.min() - 100) <= 3
    assert abs(x.max() - 300) <= 3
    assert abs(y.max() - 180) <= 3
    assert 55 < y.min() < 78  # the label lies above the box
    assert not changed[100:170, 110:290].any()


@pytest.mark.parametrize("box", [(-0.5, -0.5, 1.5, 1.5), (0.9, 0.95, 1.0, 1.0), (0.5, 0.5, 0.5, 0.5), (5, 5, 1e9, 1e9)])
def test_any_box_can_be_drawn(box):
    drawn = page.draw(np.zeros((30, 20, 3), np.uint8), [("Chequered square", 0.5, box)])
    assert drawn.shape == (400, 267, 3)


@pytest.mark.parametrize(("count", "expected"), [(0, "abcde"), (5, "abcde"), (9, "abcde"), (1, "a"), (2, "ae")])
def test_images_are_spread_evenly(count, expected):
    assert "".join(page.choose(dict.fromkeys("abcde"), count)) == expected


def test_mistakes_are_named(data_set, predictions, tmp_path):
    empty = tmp_path / "empty"
    (empty / "validation").mkdir(parents=True)
    (empty / "annotations").symlink_to(data_set / "annotations")
    with pytest.raises(InputError, match="holds no images"):
        draw_page(empty, predictions, tmp_path / "page.html")
    with pytest.raises(InputError, match="score from 0 to 1"):
        draw_page(data_set, predictions, tmp_path / "page.html", score=3.0)
    with pytest.raises(InputError, match="run a04 and a05 first"):
        page.main(dataset_path=str(data_set), output_path=str(tmp_path))
    predictions.with_name("net.expanded.metrics.json").write_text("[]")
    with pytest.raises(InputError, match="is not what a07 writes"):
        draw_page(data_set, predictions, tmp_path / "page.html")
    assert not (tmp_path / "page.html").exists()
