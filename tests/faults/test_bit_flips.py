"""Random bits flipped in files of weights: each is refused, or nothing has changed."""

import random
import shutil

import pytest
import torch
from engine.small import small_runner
from engine.test_damaged_checkpoints import same

from visionattn.checkpoints import packaged_path
from visionattn.engine import verify_checkpoint
from visionattn.utils.files import read_checkpoint

NAME = "va_resnet10n_cbam.digits"


def flipped(data, seed, count, below=None):
    """The content with one bit of a random byte changed, so many times."""
    draw = random.Random(seed)
    for _ in range(count):
        at = draw.randrange(below or len(data))
        changed = bytearray(data)
        changed[at] ^= 1 << draw.randrange(8)
        yield at, bytes(changed)


@pytest.fixture(scope="module")
def checkpoint(tiny_config, tmp_path_factory):
    """Of a run, with optimiser, averaged weights and history."""
    work_dir = tmp_path_factory.mktemp("flips") / "run"
    small_runner(tiny_config, work_dir, train_cfg__max_epochs=1).train()
    return work_dir / "epoch_1.pth"


def test_a_training_checkpoint(checkpoint, tmp_path, record_property):
    reference, refused = read_checkpoint(checkpoint), 0
    for at, content in flipped(checkpoint.read_bytes(), 0, 100):
        (tmp_path / "c.pth").write_bytes(content)
        try:
            verify_checkpoint(tmp_path / "c.pth")
        except ValueError as error:
            assert "c.pth is damaged" in str(error)
            refused += 1
        else:
            assert same(read_checkpoint(tmp_path / "c.pth"), reference), at
    assert refused > 80
    record_property("faults", 100)


def test_a_published_file_under_its_name(tmp_path, record_property):
    """Its name has its hash: every bit counts."""
    packaged = packaged_path(NAME)
    for _, content in flipped(packaged.read_bytes(), 1, 100):
        (tmp_path / packaged.name).write_bytes(content)
        with pytest.raises(ValueError, match=r"is damaged|is truncated|no safetensors|was refused"):
            read_checkpoint(tmp_path / packaged.name)
    record_property("faults", 100)


@pytest.mark.parametrize("where", ["header", "weights"])
def test_a_published_file_under_another_name(where, tmp_path, record_property):
    """Its header has the hash of the weights; a changed header gives the same weights, other names, or an error."""
    path = tmp_path / "renamed.safetensors"
    shutil.copy(packaged_path(NAME), path)
    data, reference = path.read_bytes(), read_checkpoint(path)
    start = 8 + int.from_bytes(data[:8], "little")
    refused = 0
    for at, content in flipped(data[:start] if where == "header" else data[start:], 2, 100):
        path.write_bytes(content + data[start:] if where == "header" else data[:start] + content)
        try:
            found = read_checkpoint(path)
        except ValueError:
            refused += 1
            continue
        assert where == "header", at
        renamed = found.keys() - reference.keys()
        assert len(renamed) <= 1 and all(torch.equal(found[key], reference[key]) for key in found.keys() - renamed)
    assert refused == 100 if where == "weights" else refused > 20
    record_property("faults", 100)
