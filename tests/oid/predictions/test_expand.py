"""Proves that all images of a block are expanded at once as each would be alone, by the plain rules."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from oid.boxes.suppression import classwise_nms
from oid.hierarchy import Hierarchy
from oid.predictions.expand import Expansion
from tests.helpers.prediction_cases import predictions_of

LABELS = ("a", "b", "c", "d", "e", "f", "other")
BELOW_D = {"LabelName": "d", "Subcategory": [{"LabelName": "e"}, {"LabelName": "f"}]}
TREE = {  # d is below b and c, which are below a
    "LabelName": "root",
    "Subcategory": [
        {
            "LabelName": "a",
            "Subcategory": [
                {"LabelName": "b", "Subcategory": [BELOW_D]},
                {"LabelName": "c", "Subcategory": [BELOW_D]},
            ],
        }
    ],
}

box = st.tuples(*[st.integers(0, 5)] * 4).map(
    lambda c: (min(c[0], c[2]), min(c[1], c[3]), max(c[0], c[2]), max(c[1], c[3]))
)
image = st.lists(st.tuples(st.integers(0, len(LABELS) - 1), st.integers(-2, 5), box), max_size=14)


def found_in(images):
    """Few places and few scores, so that there are ties, duplicates and boxes without area."""
    parts = [
        ([label for label, _, _ in boxes], [s / 4 for _, s, _ in boxes], [c for _, _, c in boxes]) for boxes in images
    ]
    return predictions_of([f"i{k}" for k in range(len(parts))], LABELS, parts)


def plain_expansion(found, tree, classes, nms_iou, only_new):
    """[(image, label, score, box), ..] by the rules, one image and one class after the other."""
    result, offsets = [], found.offsets()
    for k in range(len(found.image_ids)):
        own = [
            (found.labels[found.label_index[i]], found.scores[i], tuple(found.boxes[i]))
            for i in range(offsets[k], offsets[k + 1])
        ]
        old = [entry for entry in own if entry[0] in classes]
        above = [(label, tree.ancestors(label) if label in tree else ()) for label, _, _ in own]
        new = [(up, *own[i][1:]) for i, (_, ups) in enumerate(above) for up in ups if up in classes]
        entries, stays = old + new, set(range(len(old) + len(new)))
        for label in {label for label, _, _ in new}:
            members = [i for i, entry in enumerate(entries) if entry[0] == label]
            boxes, scores = (np.array([entries[i][column] for i in members]) for column in (2, 1))
            kept = classwise_nms(boxes, scores, np.zeros(len(members), int), nms_iou)
            stays -= set(members) - {members[i] for i in kept}
        result += [(k, *entries[i]) for i in sorted(stays) if i >= len(old) or not only_new]
    return result


def rows_of(found):
    labels = [found.labels[label] for label in found.label_index]
    return list(zip(found.image_index, labels, found.scores, map(tuple, found.boxes), strict=True))


@settings(max_examples=150, deadline=None)
@given(
    st.lists(image, max_size=5), st.sets(st.sampled_from(LABELS)), st.sampled_from([0.0, 0.3, 0.5, 1.0]), st.booleans()
)
def test_a_block_is_expanded_as_each_image_by_the_plain_rules(images, classes, nms_iou, only_new):
    found, tree = found_in(images), Hierarchy(TREE)
    result = Expansion(tree, classes, found.labels).expand(found, nms_iou=nms_iou, only_new=only_new)
    assert result.image_ids == found.image_ids
    assert rows_of(result) == plain_expansion(found, tree, classes, nms_iou, only_new)
