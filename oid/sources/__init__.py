"""Data sets of other formats: readers, what they describe in memory, and the ways from and to Open Images' paths."""
