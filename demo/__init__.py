"""The demonstration: a generated data set in Open Images layout, the whole pipeline on it, a page with pictures."""
