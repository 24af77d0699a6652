"""What several test files of trainings need."""

import pytest


@pytest.fixture(scope="module")
def dark_outside():
    """What lies outside the picture is as dark as its ground, so that only objects have a colour."""
    from training import crops

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(crops, "FILL", (0, 0, 0))
        yield
