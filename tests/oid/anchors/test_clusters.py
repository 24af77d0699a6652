"""k-means finds the sizes of the boxes, map by map."""

import numpy as np

from oid.anchors.clusters import cluster_sizes
from oid.anchors.coverage import best_ious
from oid.anchors.grids import grids_of_sizes


def boxes_of_sizes(sizes, count):
    """`count` boxes of about each size, anywhere."""
    rng = np.random.default_rng(0)
    pairs = np.repeat(np.asarray(sizes), count, axis=0) * rng.uniform(0.97, 1.03, (count * len(sizes), 2))
    corner = rng.uniform(0, 1, pairs.shape) * (1 - pairs)
    return np.concatenate([corner, corner + pairs], axis=1)


def test_k_means_finds_the_sizes_of_the_boxes():
    """Three shapes for the finer map, three for the coarser one, each several of its cells wide."""
    made = [(0.1, 0.1), (0.05, 0.2), (0.2, 0.05), (0.6, 0.6), (0.35, 0.8), (0.8, 0.35)]
    boxes = boxes_of_sizes(made, 100)
    found = cluster_sizes(boxes, np.ones(len(boxes)), sides=[48, 12], anchors_per_cell=3, seed=0)
    for wanted, pairs in ((made[:3], found[0]), (made[3:], found[1])):
        np.testing.assert_allclose(sorted(pairs), sorted(wanted), rtol=0.02)
        assert (np.diff(np.prod(pairs, axis=1)) >= 0).all()
    assert (best_ious(boxes, grids_of_sizes(found, [48, 12])) >= 0.5).all()


def test_the_same_seed_gives_the_same_sizes_and_they_follow_the_weights():
    boxes = boxes_of_sizes(np.random.default_rng(1).uniform(0.05, 0.9, (100, 2)), 5)
    options = {"sides": [24, 12], "anchors_per_cell": 2, "seed": 3}
    weights = np.where(boxes[:, 2] - boxes[:, 0] > boxes[:, 3] - boxes[:, 1], 1.0, 50.0)
    found = cluster_sizes(boxes, np.ones(500), **options)
    assert found == cluster_sizes(boxes, np.ones(500), **options)
    tall = cluster_sizes(boxes, weights, **options)
    ratio = [np.mean([h / w for pairs in sizes for w, h in pairs]) for sizes in (found, tall)]
    assert ratio[1] > ratio[0]


def test_a_map_without_boxes_has_the_sizes_of_its_neighbour():
    boxes = boxes_of_sizes([(0.1, 0.1)], 50)
    found = cluster_sizes(boxes, np.ones(50), sides=[20, 10, 5], anchors_per_cell=1, seed=0)
    np.testing.assert_allclose(np.ravel(found), np.repeat([0.1, 0.2, 0.4], 2), rtol=0.05)


def test_too_few_boxes_give_no_sizes():
    boxes = boxes_of_sizes([(0.1, 0.1)], 1)
    assert cluster_sizes(boxes, np.ones(1), sides=[20, 10], anchors_per_cell=2, seed=0) is None
    assert cluster_sizes(boxes[:0], np.ones(0), sides=[20, 10], anchors_per_cell=1, seed=0) is None
