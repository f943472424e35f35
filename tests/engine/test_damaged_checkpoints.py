"""A training checkpoint that is damaged, truncated or missing is found out, and the one before it takes its place."""

import zipfile

import pytest
import torch
from engine.small import said, small_runner

from visionattn.engine import latest_checkpoint, verify_checkpoint
from visionattn.utils.files import read_checkpoint


def same(left, right):
    if isinstance(left, torch.Tensor):
        return isinstance(right, torch.Tensor) and left.dtype == right.dtype and torch.equal(left, right)
    if isinstance(left, dict):
        return isinstance(right, dict) and left.keys() == right.keys() and all(same(left[k], right[k]) for k in left)
    return left == right


def test_every_changed_byte_is_found_or_changes_nothing(tmp_path):
    whole, other = tmp_path / "epoch_1.pth", tmp_path / "other.pth"
    torch.save({"state_dict": {"a": torch.randn(40)}, "meta": {"epoch": 1, "text": "abc"}}, whole)
    reference, data = read_checkpoint(whole), whole.read_bytes()
    found = 0
    for at in range(0, len(data), 3):
        changed = bytearray(data)
        changed[at] ^= 1 << at % 8
        other.write_bytes(changed)
        try:
            verify_checkpoint(other)
        except ValueError:
            found += 1
        else:
            assert same(read_checkpoint(other), reference), at
    assert found > len(data) / 6


def flip(path):
    """A bit of a weight, which a memory-mapped load would take as it is."""
    with zipfile.ZipFile(path) as archive:
        record = max(archive.infolist(), key=lambda info: info.file_size)
        data = archive.read(record)
    content = bytearray(path.read_bytes())
    content[content.index(data) + len(data) // 2] ^= 64
    path.write_bytes(content)


def truncate(path):
    path.write_bytes(path.read_bytes()[:-100])


def empty(path):
    path.write_bytes(b"")


DAMAGES = {
    "flipped": (flip, "epoch_2.pth is damaged: the checksum of its part"),
    "truncated": (truncate, "epoch_2.pth is damaged or truncated"),
    "empty": (empty, "epoch_2.pth is damaged or truncated"),
    "missing": (lambda path: path.unlink(), "epoch_2.pth is missing"),
}


@pytest.fixture(scope="module")
def trained(tiny_config, tmp_path_factory):
    work_dir = tmp_path_factory.mktemp("trained") / "run"
    small_runner(tiny_config, work_dir).train()
    return work_dir


@pytest.fixture
def work_dir(trained, tmp_path):
    for name in ("epoch_1.pth", "epoch_2.pth", "last_checkpoint"):
        (tmp_path / name).write_bytes((trained / name).read_bytes())
    return tmp_path


@pytest.mark.parametrize("kind", DAMAGES)
def test_falls_back_and_says_so(kind, work_dir):
    damage, message = DAMAGES[kind]
    damage(work_dir / "epoch_2.pth")
    told = []
    assert latest_checkpoint(work_dir, told.append) == work_dir / "epoch_1.pth"
    assert len(told) == 1 and message in told[0] and told[0].endswith("resuming from epoch_1.pth instead")


def test_the_run_ends_where_it_would_have(work_dir, trained, tiny_config, capsys):
    flip(work_dir / "epoch_2.pth")
    small_runner(tiny_config, work_dir, resume=True).train()
    assert "resuming from epoch_1.pth instead" in said(capsys)
    a, b = (read_checkpoint(folder / "epoch_2.pth")["state_dict"] for folder in (trained, work_dir))
    assert same(dict(a), dict(b))


def test_a_named_checkpoint_is_verified(work_dir, tiny_config):
    flip(work_dir / "epoch_2.pth")
    for resume in (True, False):  # also one that only gives its weights
        runner = small_runner(tiny_config, work_dir / "other", str(work_dir / "epoch_2.pth"))
        runner._resume = resume
        with pytest.raises(ValueError, match=r"epoch_2.pth is damaged: the checksum"):
            runner.train()


def test_none_is_whole(work_dir):
    flip(work_dir / "epoch_2.pth")
    truncate(work_dir / "epoch_1.pth")
    with pytest.raises(ValueError, match=r"no checkpoint in .* can be resumed from: .*epoch_2.*; .*epoch_1"):
        latest_checkpoint(work_dir)


def test_checkpoints_beyond_the_last_one_are_of_another_run(work_dir):
    (work_dir / "last_checkpoint").write_text("epoch_1.pth")
    assert latest_checkpoint(work_dir).name == "epoch_1.pth"
    (work_dir / "last_checkpoint").unlink()  # a process that died before it was written
    assert latest_checkpoint(work_dir).name == "epoch_2.pth"


def test_config_in_a_checkpoint_is_not_run(work_dir, tiny_config, tmp_path):
    """mmengine would run what stands there."""
    checkpoint = read_checkpoint(work_dir / "epoch_1.pth")
    checkpoint["meta"]["config"] = f"open({str(tmp_path / 'ran')!r}, 'w')"
    torch.save(checkpoint, work_dir / "hostile.pth")  # its tensors are mapped from epoch_1.pth
    small_runner(tiny_config, tmp_path / "run", resume=str(work_dir / "hostile.pth")).train()
    assert not (tmp_path / "ran").exists()
