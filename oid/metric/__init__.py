"""The Open Images Challenge metric, COCO's numbers, and kinds of error (a07)."""
