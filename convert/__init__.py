"""Reads the checkpoints of other projects: keras-retinanet's RetinaNet, and M2Det of its authors."""
