"""The training files of each level of the class hierarchy (a01)."""
