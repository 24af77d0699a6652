"""The table of the ablation: gains and losses are told from noise by images drawn for both variants alike, and by how
much a difference varies from seed to seed."""

import numpy as np
import pytest

from benchmarks.ablation import VARIANTS, deviation_of_differences, make_variant, print_table
from oid.fusion.resampling import Curves
from oid.metric.challenge import Detections, GroundTruth, match
from training.options import OWN, PUBLISHED, LengthOptions

IMAGES = 40
BOX, ELSEWHERE = [0.1, 0.1, 0.5, 0.5], [0.6, 0.6, 0.9, 0.9]
NONE = np.zeros(0, np.int64)
TRUTH = GroundTruth(
    tuple(f"{number:03d}" for number in range(IMAGES)),
    *(np.arange(IMAGES), np.zeros(IMAGES, np.int64), np.tile(BOX, (IMAGES, 1)), np.zeros(IMAGES, bool), NONE, NONE),
)


def run(found: np.ndarray) -> list:
    """Of one seed: a box in each image, right where `found`; all scores are different."""
    boxes = np.where(found[:, None], BOX, ELSEWHERE)
    detections = Detections(np.arange(IMAGES), np.zeros(IMAGES, np.int64), 1 - 0.01 * np.arange(IMAGES), boxes)
    return [Curves(match(TRUTH, detections, num_classes=1))]


def verdicts(found: dict, capsys) -> dict[str, tuple[float, float, float, str]]:
    """Of each variant difference, both ends of its interval and verdict, as printed for an IoU of 0.5."""
    print_table(found, resamples=300)
    rows = [line.strip("| ").split("|") for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    told = {}
    for name, _, difference, verdict, *_ in (row for row in rows if row[0].strip() not in ("variant", "base")):
        mean, low, _, high = difference.strip(" )").replace("(", " ").split()
        told[name.strip()] = float(mean), float(low), float(high), verdict.strip()
    return told


def test_better_on_nearly_every_image_is_a_gain_and_worse_a_loss(capsys):
    half = np.arange(IMAGES) % 2 == 0
    found = {"base": [run(half)] * 2, "all": [run(half | True)] * 2, "few": [run(np.arange(IMAGES) % 5 == 0)] * 2}
    told = verdicts(found, capsys)
    (gain, low, high, word), (loss, *ends, other) = told["all"], told["few"]
    assert (word, other) == ("gain", "loss")
    assert 0 < low < gain < high
    assert ends[0] < loss < ends[1] < 0


def test_the_same_is_noise_without_width_because_the_images_are_drawn_for_both(capsys):
    """Bootstrapped by itself, the mAP of either varies by many points."""
    half = np.arange(IMAGES) % 2 == 0
    assert verdicts({"base": [run(half)], "same": [run(half)]}, capsys)["same"] == (0, 0, 0, "noise")


def test_another_choice_of_images_is_noise(capsys):
    rng = np.random.default_rng(3)
    base, other = (rng.permutation(np.arange(IMAGES) % 2 == 0) for _ in range(2))
    mean, low, high, word = verdicts({"base": [run(base)], "other": [run(other)]}, capsys)["other"]
    assert word == "noise"
    assert low < 0 < high
    assert low < mean < high


def test_a_gain_smaller_than_what_seeds_differ_by_is_noise(capsys):
    """Without the third variant, of which one training finds all and one nothing, it would be sure."""
    most, everything = np.arange(IMAGES) % 5 > 0, np.ones(IMAGES, bool)
    found = {"base": [run(most)] * 2, "all": [run(everything)] * 2, "wild": [run(everything), run(~everything)]}
    assert verdicts({name: found[name] for name in ("base", "all")}, capsys)["all"][3] == "gain"
    mean, low, high, word = verdicts(found, capsys)["all"]
    assert word == "noise"
    assert low < 0 < mean < high


def test_the_deviation_is_that_of_differences_of_the_same_seed_pooled_over_the_variants(capsys):
    """Of differences 1 and 0 it is the square root of 1/2; beside a variant that always differs by the same, half of
    that square."""
    everything = np.ones(IMAGES, bool)
    right, wrong = run(everything), run(~everything)
    one = {"base": [right, wrong], "other": [right, right]}
    np.testing.assert_allclose(deviation_of_differences(one), 0.5**0.5)
    np.testing.assert_allclose(deviation_of_differences({**one, "same": [right, wrong]}), 0.5)
    assert deviation_of_differences({"base": [right], "other": [wrong]}) is None
    print_table({"base": [right], "other": [wrong]}, resamples=2)
    assert "the intervals are those of the images alone" in capsys.readouterr().out


def test_seeds_are_averaged(capsys):
    """One seed that finds all and one that finds nothing are half of what the first gains."""
    nothing, everything = np.zeros(IMAGES, bool), np.ones(IMAGES, bool)
    found = {"base": [run(nothing)] * 2, "one": [run(everything), run(nothing)], "two": [run(everything)] * 2}
    told = verdicts(found, capsys)
    assert told["two"][0] == pytest.approx(100)
    assert told["one"][0] == pytest.approx(50)


def test_every_variant_differs_from_the_base_in_its_fields():
    base = make_variant("base", LengthOptions(), 3)
    assert (base[0].machine.seed, base[1]) == (3, OWN)
    same = [name for name in VARIANTS if make_variant(name, LengthOptions(), 3) == base]
    assert set(same) == {"base", OWN.box_loss}
    assert make_variant("ciou", LengthOptions(), 0)[1].box_loss == "ciou"
    assert make_variant("no label rules", LengthOptions(), 0)[0].labels.rules == ()
    assert make_variant("no mosaic", LengthOptions(), 0)[1].mosaic == 0
    assert make_variant("published", LengthOptions(), 0)[1] == PUBLISHED
