"""Predictors that several tests share."""

import numpy as np
import pytest
from PIL import Image

from visionattn.inference import Predictor


@pytest.fixture(scope="session")
def classifier():
    return Predictor("va_resnet10n_cbam.digits", topk=3)


@pytest.fixture(scope="session")
def detector():
    return Predictor("va_resnet10n_cbam.digit_scenes_fcos", score=0.3)


@pytest.fixture(scope="session")
def segmentor():
    return Predictor("va_resnet10n_cbam.digit_scenes_deeplabv3plus")


@pytest.fixture(scope="session")
def scene():
    """A scene with digits, `(128, 128, 3)`."""
    from visionattn.data import SyntheticDigits

    data = SyntheticDigits(split="test", task="detection", size=128, pipeline=[], length=1)
    return data[0]["inputs"].permute(1, 2, 0).contiguous().numpy()


@pytest.fixture
def noise():
    """Makes a picture of noise of a size: `noise(height, width, seed=0)`."""

    def make(height, width, seed=0):
        return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)

    return make


@pytest.fixture
def folder(tmp_path, noise):
    """A folder with three pictures and a broken one."""
    root = tmp_path / "photos"
    root.mkdir()
    for number, name in enumerate(("a.png", "photo [edited].png", "猫é.png")):
        Image.fromarray(noise(40, 30 + 10 * number, number)).save(root / name)
    (root / "broken.jpg").write_bytes(b"no picture")
    return root
