"""Goes as soon as nobody imports it: see `training.processes` and `training.devices`."""

from training.processes import copy_of_first, from_any, from_first, is_first, several, share_of  # noqa: F401
