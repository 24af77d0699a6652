"""IoU, non-maximum suppression, box voting, and the best (anchor, class) pairs, with their compiled loops."""
