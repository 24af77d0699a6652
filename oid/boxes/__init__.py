"""Boxes: overlap, suppression, voting, and the compiled loops of it."""
