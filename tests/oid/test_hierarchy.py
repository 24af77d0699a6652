"""Proves the class hierarchy: ancestors and descendants per path, heights, contraction, and errors for bad files."""

import json
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oid.annotations import read_class_descriptions
from oid.files import InputError
from oid.hierarchy import Hierarchy, read_hierarchy
from tests.helpers.project import shared


def node(label: str, *children: dict) -> dict:
    return {"LabelName": label, "Subcategory": list(children)} if children else {"LabelName": label}


# The tree of the reference's own test: a(root){b, c{d, e, f{d}}, f{d}}
REFERENCE = node("a", node("b"), node("c", node("d"), node("e"), node("f", node("d"))), node("f", node("d")))


def test_reference_case():
    hierarchy = Hierarchy(REFERENCE)
    assert hierarchy.root == "a"
    assert "a" not in hierarchy
    assert hierarchy.ancestors("a") == hierarchy.descendants("a") == ()
    assert hierarchy.labels == ("b", "c", "d", "e", "f")
    assert hierarchy.ancestors("b") == ()
    assert hierarchy.ancestors("d") == ("c", "f")
    assert hierarchy.ancestors("f") == ("c",)
    assert hierarchy.descendants("c") == ("d", "e", "f")
    assert hierarchy.descendants("f") == ("d",)
    assert hierarchy.children("c") == ("d", "e", "f")
    assert {label: hierarchy.height(label) for label in hierarchy.labels} == {"b": 1, "c": 3, "d": 1, "e": 1, "f": 2}


def test_nearest_ancestor_comes_first():
    hierarchy = Hierarchy(node("root", node("top", node("middle", node("leaf"))), node("other", node("leaf"))))
    assert hierarchy.ancestors("leaf") == ("middle", "other", "top")
    assert hierarchy.descendants("top") == ("middle", "leaf")


def test_an_occurrence_without_children_gives_them_no_second_parent():
    hierarchy = Hierarchy(node("root", node("fruit", node("apple", node("gala"))), node("food", node("apple"))))
    assert hierarchy.ancestors("apple") == ("fruit", "food")
    assert hierarchy.ancestors("gala") == ("apple", "fruit")
    assert hierarchy.descendants("food") == ("apple",)


def test_part_edges_do_not_count():
    car = {"LabelName": "car", "Part": [node("wheel", node("tyre"))], "Subcategory": [node("taxi")]}
    hierarchy = Hierarchy({"LabelName": "root", "Subcategory": [car, node("wheel")], "Part": [node("door")]})
    assert hierarchy.labels == ("car", "taxi", "wheel")
    assert hierarchy.ancestors("wheel") == ()
    assert hierarchy.height("car") == 2


@pytest.mark.parametrize(
    ("top", "kept", "expected"),
    [
        (node("middle", node("x"), node("y")), "top x z unknown", [node("top", node("x"), node("z"))]),
        (node("middle", node("x"), node("y")), "x middle", [node("middle", node("x"))]),
        (node("middle", node("x")), "", []),
        (node("middle", node("z")), "top z", [node("top", node("z"))]),  # siblings that become equal are merged
    ],
)
def test_contraction_moves_children_up(top, kept, expected):
    tree = node("root", node("top", top, node("z")))
    assert Hierarchy(tree).contract(set(kept.split())).tree == node("root", *expected)


@st.composite
def trees(draw) -> dict:
    """A directed acyclic graph over c0..c7, edges from lower to higher numbers, unrolled from the root."""
    count = draw(st.integers(1, 8))
    children = {
        index: draw(st.lists(st.sampled_from(range(index + 1, count)), unique=True, max_size=3)) if index < 6 else []
        for index in range(count - 1)
    } | {count - 1: []}
    below = {child for found in children.values() for child in found}

    def unrolled(index: int) -> dict:
        return node(f"c{index}", *map(unrolled, children[index]))

    return node("root", *(unrolled(index) for index in range(count) if index not in below))


@given(trees(), st.sets(st.sampled_from([f"c{index}" for index in range(8)])))
def test_contraction_keeps_who_is_above_whom(tree, kept):
    full = Hierarchy(tree)
    contracted = full.contract(kept)
    assert set(contracted.labels) == kept & set(full.labels)
    for label in contracted.labels:
        assert set(contracted.ancestors(label)) == set(full.ancestors(label)) & kept
        assert set(contracted.descendants(label)) == set(full.descendants(label)) & kept
        children = contracted.children(label)
        assert contracted.height(label) == 1 + max(map(contracted.height, children), default=0)


def test_the_real_hierarchy_has_the_known_levels():
    hierarchy = read_hierarchy(shared("data", "oid_metadata", "bbox_labels_600_hierarchy.json"))
    classes = read_class_descriptions(shared("data", "oid_metadata", "class-descriptions-boxable.csv"))
    assert set(classes) == set(hierarchy.labels)
    assert Counter(map(hierarchy.height, hierarchy.labels)) == {1: 525, 2: 56, 3: 14, 4: 5, 5: 1}
    assert max(len(hierarchy.ancestors(label)) for label in hierarchy.labels) == 6


def test_the_real_hierarchy_contracted_to_the_challenge():
    hierarchy = read_hierarchy(shared("data", "oid_metadata", "bbox_labels_600_hierarchy.json"))
    kept = read_class_descriptions(shared("data", "oid_metadata", "challenge-2018-class-descriptions-500.csv"))
    contracted = hierarchy.contract(kept)
    assert Counter(map(contracted.height, contracted.labels)) == {1: 443, 2: 46, 3: 8, 4: 2, 5: 1}
    derived = shared("data", "oid_metadata", "challenge-500-hierarchy.DERIVED.json")
    assert contracted.tree == json.loads(derived.read_text())
    assert contracted.tree == read_hierarchy(derived).tree


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "line 1: not JSON"),
        ('{"LabelName": "a",\n "Subcategory": [', "line 2: not JSON"),
        ("[]", "expected a node"),
        ("{}", "expected a node"),
        ('{"LabelName": ""}', "expected a node"),
        ('{"LabelName": 7}', "expected a node"),
        ('{"LabelName": "a", "Subcategory": {}}', "Subcategory of class a"),
        ('{"LabelName": "a", "Subcategory": ["b"]}', 'found "b"'),
        (json.dumps(node("a", node("b", node("c", node("b"))))), "is below itself"),
        (json.dumps(node("a", node("b", node("a", node("c"))))), "is below itself"),
        (json.dumps(node("a", node("b", node("c")), node("c", node("b")))), "is below itself"),
        ("[" * 100_000, "nested too deeply"),
        ('{"LabelName": "\xe9"}', "UTF-8"),
        (None, "does not exist"),
        (42, "is a folder"),
    ],
)
def test_bad_files_are_named(tmp_path, text, message):
    path = tmp_path / "hierarchy.json"
    if isinstance(text, str):
        path.write_text(text, encoding="latin-1")
    elif text is not None:
        path.mkdir()
    with pytest.raises(InputError) as error:
        read_hierarchy(path)
    assert str(path) in str(error.value)
    assert message in str(error.value)
