"""Proves what the benchmarks of the training rest on: a table of the README is replaced where its marks are, and
nothing else of the file."""

import pytest

from benchmarks.results import find_table, replace_table
from benchmarks.training_runs import ROOT
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


@pytest.mark.parametrize("name", ["demonstration", "photographs", "Pascal VOC"])
def test_the_readme_has_a_place_for_each_table(name):
    before, after = find_table(ROOT / "README.md", name)
    assert before.endswith(f"<!-- {name} -->")
    assert after.startswith(f"<!-- end of {name} -->")
