"""Anchors: grids, coverage, clusters, and the report on them (a02)."""
