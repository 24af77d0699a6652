"""The class hierarchy of Open Images: ancestors, descendants, heights, contraction to fewer classes.

The file is a nested JSON of nodes `{"LabelName": .., "Subcategory": [node, ..]}`. Only `Subcategory` counts (`Part`
says that a wheel belongs to a car, not that it is one), and the root ("Entity") is not a class. A class may occur at
several places. Ancestors and descendants are taken per path, as the reference of the challenge metric does
(`oid_hierarchical_labels_expansion.py`): if one occurrence leaves out the children, they do not gain its parents.
"""

import json
import os
from collections.abc import Collection, Iterator
from graphlib import CycleError, TopologicalSorter

from oid.files import InputError, require_file
from oid.text_files import read_text


class Hierarchy:
    """A tree of classes in which a class may occur more than once.

    Attributes:
        tree: the nested JSON with `LabelName` and `Subcategory` only, siblings of one label merged.
        root: the label of the root, which is not a class.
        labels: every class without the root, in the order of first occurrence (depth first).
    """

    def __init__(self, tree: dict):
        """Reads the nested JSON. Raises an InputError if a node is malformed, or a class is below itself."""
        self.tree = _checked(tree)
        self.root: str = self.tree["LabelName"]
        above: dict[str, dict[str, int]] = {}  # {label: {ancestor: steps on the shortest path}}
        children: dict[str, dict[str, None]] = {self.root: {}}
        for label, path in _walk(self.tree, ()):
            children.setdefault(label, {})
            children[path[-1]][label] = None
            distances = above.setdefault(label, {})
            for steps, ancestor in enumerate(reversed(path[1:]), start=1):  # path[0] is the root
                distances[ancestor] = min(steps, distances.get(ancestor, steps))
        self.labels: tuple[str, ...] = tuple(above)
        below: dict[str, dict[str, int]] = {label: {} for label in self.labels}
        for label, distances in above.items():
            for ancestor, steps in distances.items():
                below[ancestor][label] = steps
        self._heights = _heights(children)
        self._children = {label: tuple(children[label]) for label in self.labels}
        self._ancestors = {label: self._nearest_first(distances) for label, distances in above.items()}
        self._descendants = {label: self._nearest_first(distances) for label, distances in below.items()}

    def _nearest_first(self, distances: dict[str, int]) -> tuple[str, ...]:
        """Sorts labels by distance; equally near ones stay in the order of first occurrence."""
        return tuple(sorted((label for label in self.labels if label in distances), key=distances.get))

    def __contains__(self, label: object) -> bool:
        """Whether `label` is a class; the root is not."""
        return label in self._children

    def ancestors(self, label: str) -> tuple[str, ...]:
        """Returns the classes above `label` on any path, nearest first, without the root; () if it is not a class."""
        return self._ancestors.get(label, ())

    def descendants(self, label: str) -> tuple[str, ...]:
        """Returns every class that has `label` among its ancestors, nearest first; () if it is not a class."""
        return self._descendants.get(label, ())

    def children(self, label: str) -> tuple[str, ...]:
        """Returns the classes directly below `label` at any of its places, in order of first occurrence."""
        return self._children[label]

    def height(self, label: str) -> int:
        """Returns 1 for a leaf, else 1 + the height of the highest child."""
        return self._heights[label]

    def contract(self, kept: Collection[str]) -> "Hierarchy":
        """Returns the hierarchy of the classes in `kept`; the children of a dropped class move up to its parent.

        Labels in `kept` that are not in the hierarchy are ignored.
        """
        kept = frozenset(kept)

        def contracted(nodes: list[dict]) -> list[dict]:
            result = []
            for node in nodes:
                children = contracted(node.get("Subcategory", []))
                result += [_node(node["LabelName"], children)] if node["LabelName"] in kept else children
            return result

        return Hierarchy(_node(self.root, contracted(self.tree.get("Subcategory", []))))


def read_hierarchy(path: str | os.PathLike) -> Hierarchy:
    """Reads the nested JSON, for example `bbox_labels_600_hierarchy.json`.

    Raises:
        InputError: the file does not exist, is not JSON, or has a malformed node.
    """
    path = require_file(path, "expected the class hierarchy, a JSON file such as bbox_labels_600_hierarchy.json")
    text = read_text(path)
    try:
        return Hierarchy(json.loads(text))
    except json.JSONDecodeError as error:
        raise InputError(f"{path}, line {error.lineno}: not JSON ({error.msg}): download the file again") from error
    except RecursionError as error:
        raise InputError(f"{path}: nested too deeply for a class hierarchy: download the file again") from error
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def _node(label: str, children: list[dict]) -> dict:
    return {"LabelName": label, "Subcategory": children} if children else {"LabelName": label}


def _checked(node: object) -> dict:
    """Copies a node with the two keys that count; siblings of one label become one with the children of both."""
    if not isinstance(node, dict) or not isinstance(node.get("LabelName"), str) or not node["LabelName"]:
        raise InputError(f'expected a node {{"LabelName": "..."}} and found {_shown(node)}: see the official hierarchy')
    label, listed = node["LabelName"], node.get("Subcategory", [])
    if not isinstance(listed, list):
        raise InputError(f"Subcategory of class {label} is {_shown(listed)}: expected a list of nodes")
    children: dict[str, list] = {}
    for child in map(_checked, listed):
        children.setdefault(child["LabelName"], []).extend(child.get("Subcategory", []))
    return _node(label, [_checked(_node(name, below)) for name, below in children.items()])


def _shown(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _walk(node: dict, path: tuple[str, ...]) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yields (label, labels from the root down to its parent) for every place below `node`, depth first."""
    path = (*path, node["LabelName"])
    for child in node.get("Subcategory", []):
        yield child["LabelName"], path
        yield from _walk(child, path)


def _heights(children: dict[str, dict[str, None]]) -> dict[str, int]:
    """{label: height} of the graph that joins all places of a class. Raises an InputError if it has a circle."""
    heights: dict[str, int] = {}
    try:
        for label in TopologicalSorter(children).static_order():  # leaves first
            heights[label] = 1 + max((heights[child] for child in children[label]), default=0)
    except CycleError as error:
        raise InputError(f"class {error.args[1][0]} is below itself") from error
    return heights
