"""Prediction files: reading, writing, expanding."""
