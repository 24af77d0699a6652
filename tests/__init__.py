"""The tests; `tests/helpers/` has what several of them share."""
