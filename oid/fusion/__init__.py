"""Fusion of several models' boxes, and the search for its settings (a06)."""
