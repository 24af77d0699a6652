"""What several test files need: `from tests.helpers.project import run_script, shared`."""

from pathlib import Path

import hypothesis
import pytest


def pytest_configure(config):
    """The quick tests draw the same cases every time, so that nobody's change fails by another's; `make test-all` draws
    new ones."""
    hypothesis.settings.register_profile("the same", derandomize=True)
    if config.getoption("markexpr"):
        hypothesis.settings.load_profile("the same")


@pytest.fixture(scope="session")
def photographs(tmp_path_factory) -> tuple[Path, Path]:
    """DATASET and OUTPUT of a few drawn pictures, after a01; to be read only."""
    from tests.helpers.small_photographs import make_photographs

    return make_photographs(tmp_path_factory.mktemp("photographs"))


@pytest.fixture(scope="session")
def tiny_backbone():
    """Makes `--backbone tiny` known: three convolutions, because building the graph is most of a tiny training."""
    import dataclasses

    import keras

    from models.backbones import BACKBONES
    from models.blocks import conv_bn_relu

    def build(*, input_tensor, weights=None):
        x = conv_bn_relu(input_tensor, 8, 3, strides=4, name="first")
        x = conv_bn_relu(x, 16, 3, strides=2, name="shallow")
        return keras.Model(input_tensor, conv_bn_relu(x, 16, 3, strides=2, name="deep"), name="tiny")

    tiny = dataclasses.replace(
        BACKBONES["residual_small"], build=build, shallow="shallow_relu", deep="deep_relu", preprocessing="tf"
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(BACKBONES, "tiny", tiny)
        yield


@pytest.fixture(scope="session")
def trained(photographs, tiny_backbone):
    """A run of a03 on `photographs` with the flags of `small_photographs.TINY`; to be read only."""
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
