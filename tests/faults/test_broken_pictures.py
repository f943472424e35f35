"""Pictures cut off, with flipped bits or noise inside: each is read or refused in one line, whatever the format."""

import random

import cv2
import numpy as np
import pytest

from visionattn.data.images import read_image

FORMATS = ("png", "jpg", "bmp", "webp", "tif", "ppm")


def damages(data, draw):
    """So many ways to spoil a file."""
    for share in (0.0, 0.02, 0.3, 0.9):
        yield data[: int(len(data) * share)]
    for _ in range(8):
        changed = bytearray(data)
        changed[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
        yield bytes(changed)
    for _ in range(4):
        changed = bytearray(data)
        at = draw.randrange(len(data))
        changed[at : at + 40] = draw.randbytes(40)
        yield bytes(changed)
    for _ in range(4):  # sizes and offsets stand near the beginning
        changed = bytearray(data)
        at = draw.randrange(min(60, len(data)))
        changed[at : at + 4] = b"\xff\xff\xff\x7f"
        yield bytes(changed)


@pytest.mark.parametrize("suffix", FORMATS)
def test_is_read_or_refused(suffix, tmp_path, record_property):
    picture = np.random.default_rng(0).integers(0, 256, (40, 30, 3), np.uint8)
    path = tmp_path / f"whole.{suffix}"
    cv2.imwrite(str(path), picture)
    data, draw, tried, refused = path.read_bytes(), random.Random(suffix), 0, 0
    for content in damages(data, draw):
        broken = tmp_path / f"broken.{suffix}"
        broken.write_bytes(content)
        tried += 1
        try:
            image = read_image(broken)
        except ValueError as error:
            assert f"broken.{suffix}" in str(error) and "\n" not in str(error)
            refused += 1
        else:
            assert image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3
    assert refused >= 3
    record_property("faults", tried)
