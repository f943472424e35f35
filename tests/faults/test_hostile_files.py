"""Files made to run code, to take all memory or to read what is not theirs: refused in one line, and nothing ran."""

import io
import json
import os
import pickle
import resource
import struct
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from visionattn.engine import load_config
from visionattn.utils.files import read_checkpoint

MARKER = "code-ran"


class Reduce:
    def __init__(self, call, *arguments):
        self.call, self.arguments = call, arguments

    def __reduce__(self):
        return self.call, self.arguments


class Raw:
    """A pickle written by hand, as no honest program writes it."""

    def __init__(self, content):
        self.content = content


def instance(module, name, argument):
    """Opcode INST: a class is called while the stream is read."""
    return Raw(b"(S'" + argument.encode() + b"'\ni" + module.encode() + b"\n" + name.encode() + b"\n.")


def stack_global(module, name, argument):
    """Opcode STACK_GLOBAL, names from the stack, where a scan for text may not look."""
    parts = [b"\x80\x04"]
    for text in (module, name):
        parts.append(b"\x8c" + bytes([len(text)]) + text.encode())
    parts += [b"\x93", b"\x8c" + bytes([len(argument)]) + argument.encode(), b"\x85R."]
    return Raw(b"".join(parts))


COMMAND = f"touch {MARKER}"
OBJECTS = {
    "os.system": Reduce(os.system, COMMAND),
    "eval": Reduce(eval, f"open('{MARKER}', 'w')"),
    "exec": Reduce(exec, f"open('{MARKER}', 'w')"),
    "open": Reduce(open, MARKER, "w"),
    "import": Reduce(__import__, "this"),
    "getattr": Reduce(getattr, "text", "upper"),
    "torch.load": Reduce(torch.load, "other.pth"),
    "torch.hub": Reduce(torch.hub.load, "a/b", "c"),
    "numpy.fromfile": Reduce(np.fromfile, "secret"),
    "in a list": [{"a": (Reduce(os.system, COMMAND),)}],
    "as a key": {"state_dict": {Reduce(os.system, COMMAND): torch.ones(1)}},
    "inst": instance("os", "system", COMMAND),
    "inst of subprocess": instance("subprocess", "getoutput", COMMAND),
    "stack global": stack_global("posix", "system", COMMAND),
    "stack global of builtins": stack_global("builtins", "eval", f"open('{MARKER}', 'w')"),
}


def as_zip(content, path):
    """PyTorch's present format, with this pickle in it."""
    torch.save({"a": torch.ones(2)}, path)
    with zipfile.ZipFile(path) as archive:
        records = {info.filename: archive.read(info) for info in archive.infolist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in records.items():
            archive.writestr(name, content if name.endswith("data.pkl") else data)


def as_pickle(content, path):
    path.write_bytes(content)


def as_old_format(content, path):
    """PyTorch's format before 1.6: magic number, protocol, system, then the object."""
    parts = [pickle.dumps(part, 2) for part in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})]
    path.write_bytes(b"".join(parts) + content + pickle.dumps([], 2))


def as_tar(content, path):
    """PyTorch's first format."""
    with tarfile.open(path, "w") as archive:
        for name in ("storages", "tensors", "pickle"):
            data = content if name == "pickle" else pickle.dumps(0, 2)
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))


@pytest.mark.parametrize("wrap", [as_zip, as_pickle, as_old_format, as_tar], ids=lambda wrap: wrap.__name__)
@pytest.mark.parametrize("name", OBJECTS)
def test_pickles_run_nothing(name, wrap, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    thing = OBJECTS[name]
    wrap(thing.content if isinstance(thing, Raw) else pickle.dumps({"state_dict": thing}, 2), tmp_path / "w.pth")
    with pytest.raises(ValueError, match=r"w\.pth (was refused|is truncated or no checkpoint|holds a)") as caught:
        read_checkpoint(tmp_path / "w.pth")
    assert "\n" not in str(caught.value) and not (tmp_path / MARKER).exists()


def header(path, tensors, data=b"\0" * 8):
    text = tensors if isinstance(tensors, bytes) else json.dumps(tensors).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


def tensor(shape=(2,), start=0, end=8, dtype="F32"):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}


HEADERS = {
    "overlap": {"a": tensor(), "b": tensor()},
    "hole": {"a": tensor((1,), 4, 8)},
    "backwards": {"a": tensor((2,), 8, 0)},
    "negative": {"a": tensor((2,), -8, 8)},
    "beyond the file": {"a": tensor((4,), 0, 16)},
    "enormous shape": {"a": tensor((2**62, 2**62))},
    "enormous offset": {"a": tensor((2,), 2**63, 2**63 + 8)},
    "negative shape": {"a": tensor((-1, -2))},
    "fractional shape": {"a": tensor((2.5,))},
    "unknown dtype": {"a": tensor(dtype="PICKLE")},
    "shape is text": {"a": {"dtype": "F32", "shape": "2", "data_offsets": [0, 8]}},
    "deep": b'{"a": ' + b"[" * 5000 + b"]" * 5000 + b"}",
    "deeper than Python goes": b"[" * 200_000,
    "no text": b"\xff\xfe\x00\x01" * 8,
    "numbers without an end": b'{"a": {"dtype": "F32", "shape": [' + b"9" * 5000 + b'], "data_offsets": [0, 8]}}',
    "not a number": b'{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, NaN]}}',
}


@pytest.mark.parametrize("name", HEADERS)
def test_safetensors_headers(name, tmp_path):
    header(tmp_path / "w.safetensors", HEADERS[name])
    with pytest.raises(ValueError, match=r"w\.safetensors (is|holds|was)") as caught:
        read_checkpoint(tmp_path / "w.safetensors")
    assert "\n" not in str(caught.value)


@pytest.fixture
def little_memory():
    """1 GiB more than now: what asks for all memory fails at once, and does no harm."""
    now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (now + (1 << 30), before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


def test_a_zip_that_unpacks_to_gigabytes(tmp_path, little_memory):
    """PyTorch stores what it writes uncompressed; ten megabytes of zeros become two gigabytes."""
    with zipfile.ZipFile(tmp_path / "w.pth", "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({"a": 1}, 2))
        with archive.open("archive/data/0", "w", force_zip64=True) as file:
            for _ in range(512):
                file.write(bytes(1 << 22))
    try:
        found = read_checkpoint(tmp_path / "w.pth")
    except ValueError as error:
        assert "w.pth" in str(error)
    else:
        assert found == {"a": 1}  # what nothing refers to is not unpacked


def test_a_tensor_larger_than_its_storage(tmp_path):
    """Its numbers would come from whatever lies behind in memory."""
    path = tmp_path / "w.pth"
    torch.save({"a": torch.arange(1000.0)}, path)
    with zipfile.ZipFile(path) as archive:
        records = {info.filename: archive.read(info) for info in archive.infolist()}
    for name, data in records.items():
        if name.endswith("data.pkl"):
            records[name] = data.replace(b"M\xe8\x03", b"M\xff\xff")  # 1000 -> 65535
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in records.items():
            archive.writestr(name, data)
    with pytest.raises(ValueError, match=r"w\.pth is truncated or no checkpoint"):
        read_checkpoint(path)["a"].sum()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("c.yaml", f"model: !!python/object/apply:os.system ['{COMMAND}']\n"),
        ("c.yml", f"a: !!python/object/new:os.system ['{COMMAND}']\n"),
        ("c.json", '{"custom_imports": {"imports": ["evil"]}}'),
        ("c.txt", "model = 1\n"),
    ],
)
def test_configs_that_are_not_code_by_name_run_none(name, content, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "evil.py").write_text(f"open({MARKER!r}, 'w')\n")
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=name.replace(".", r"\.")):
        load_config(tmp_path / name)
    assert not (tmp_path / MARKER).exists()
