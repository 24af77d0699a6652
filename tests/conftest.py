"""What several test files need: `from tests.helpers.project import run_script, shared`."""

from pathlib import Path

import hypothesis
import pytest


def pytest_configure(config):
    """The quick tests draw the same random cases every time; `make test-all` draws new ones."""
    hypothesis.settings.register_profile("the same", derandomize=True)
    if config.getoption("markexpr"):
        hypothesis.settings.load_profile("the same")


@pytest.fixture(scope="session")
def photographs(tmp_path_factory) -> tuple[Path, Path]:
    """DATASET and OUTPUT of a few drawn pictures, after a01; read-only."""
    from tests.helpers.small_photographs import make_photographs

    return make_photographs(tmp_path_factory.mktemp("photographs"))


@pytest.fixture(scope="session")
def tiny_backbone():
    """Makes `--backbone tiny` known."""
    from models.backbones import BACKBONES
    from tests.helpers import tiny_network

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(BACKBONES, "tiny", tiny_network.tiny_backbone())
        yield


@pytest.fixture(scope="session")
def trained(photographs, tiny_backbone):
    """A run of a03 on `photographs` with the flags of `small_photographs.TINY`; read-only."""
    import contextlib
    import io
    from types import SimpleNamespace

    import a03_train_m2det
    from tests.helpers.small_photographs import TINY

    data_set, output = photographs
    printed = io.StringIO()
    flags = {"dataset_path": str(data_set), "output_path": str(output), "run": "trained", **TINY}
    with contextlib.redirect_stdout(printed):
        a03_train_m2det.main(**flags)
    folder = output / "weights" / "trained"
    return SimpleNamespace(data_set=data_set, output=output, folder=folder, flags=flags, printed=printed.getvalue())
