"""What the package can do with what is installed: modules and networks with the core alone, the rest by extras."""

import ast
import json
import re
import subprocess
import sys
from importlib.metadata import PathDistribution, packages_distributions
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# Modules that only extras bring.
EXTRA = (
    *("albumentations", "cv2", "faster_coco_eval", "matplotlib", "mmengine", "onnx", "onnxruntime", "onnxscript"),
    *("captum", "pytorch_grad_cam", "rich", "scipy", "segmentation_models_pytorch", "skimage", "sklearn"),
    *("tensorboard", "torchmetrics"),
)
# Packages of extras that tests do without, by their modules.
NAMES = {"open_clip": "open-clip-torch", "umap": "umap-learn"}
# Modules that timm or torch bring along, but that the core may not import itself.
THEIRS = ("torchvision", "huggingface_hub", "yaml")
BLOCKER = f"""
import sys

MISSING = set({EXTRA!r})

class Without:
    '''A finder that does not find some modules.'''

    def __init__(self, finder):
        self.finder = finder

    def __getattr__(self, name):
        return getattr(self.finder, name)

    def find_spec(self, name, path=None, target=None):
        top = name.partition(".")[0]
        if top in MISSING:
            return None
        if top in {THEIRS!r}:
            frame = sys._getframe(1)
            while "importlib" in frame.f_code.co_filename:
                frame = frame.f_back
            if frame.f_code.co_filename.startswith({str(ROOT / "visionattn")!r}):
                return None
        return self.finder.find_spec(name, path, target)

sys.meta_path[:] = map(Without, sys.meta_path)
"""


@pytest.fixture(scope="module")
def metadata(tmp_path_factory):
    """What an installation of this source says of its dependencies, for importlib.metadata to find."""
    folder = tmp_path_factory.mktemp("metadata")
    code = f"import setuptools.build_meta as build; print(build.prepare_metadata_for_build_wheel({str(folder)!r}))"
    done = subprocess.run([sys.executable, "-c", code], cwd=copy_of_source(folder), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder


def copy_of_source(folder):
    """Only what setup.py reads, so that nothing is written into the source."""
    source = folder / "source"
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE", "NOTICE", "visionattn/version.py"):
        target = source / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes((ROOT / name).read_bytes())
    for name in ("configs", "tools", "checkpoints"):
        (source / name).mkdir()
    (source / "visionattn" / "__init__.py").touch()
    return source


def run(code, metadata, cwd):
    """A process without the extras."""
    path = f"import sys; sys.path[:0] = [{str(metadata)!r}, {str(ROOT)!r}]\n"
    return subprocess.run([sys.executable, "-c", path + BLOCKER + code], capture_output=True, text=True, cwd=cwd)


def commands(lines, metadata, cwd, before=""):
    """What commands print, run one after the other without the extras: `[(exit code, stdout, stderr)]`."""
    code = f"""
import io, json
from contextlib import redirect_stderr, redirect_stdout
{before}
from visionattn.cli import main
results = []
for line in {lines!r}:
    sys.argv, status = ["visionattn", *line.split()], 0
    with redirect_stdout(io.StringIO()) as out, redirect_stderr(io.StringIO()) as error:
        try:
            main()
        except SystemExit as stop:
            status = stop.code or 0
    results.append((status, out.getvalue(), error.getvalue()))
print(json.dumps(results))
"""
    done = run(code, metadata, cwd)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_modules_networks_and_weights_need_the_core_alone(metadata, tmp_path):
    code = """
import timm, torch, visionattn
x = torch.ones(1, 3, 32, 32)
model = timm.create_model("va_resnet10n_cbam.digits", pretrained=True).eval()
print(tuple(model(x).shape), len(visionattn.list_plugins()) > 5, len(visionattn.list_mixers()) > 5)
print(visionattn.attach(timm.create_model("resnet18"), "simam").attached[0])
print(tuple(visionattn.mixers.LinearAttention(16)(torch.ones(1, 4, 4, 16)).shape))
from visionattn import checkpoints
weights = checkpoints.load("va_resnet10n_cbam.digits")
print(len(weights) > 50, checkpoints.info("va_resnet10n_cbam.digits")["task"], len(checkpoints.list()) > 10)
print(timm.create_model("va_vit_linear_nano")(x).shape[-1] > 0)
print(timm.create_model("va_resnet18_ela_l").eval()(x).shape[-1])
"""
    done = run(code, metadata, tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0] == "(1, 10) True True"


def test_nothing_of_an_extra_is_found(metadata, tmp_path):
    """The other tests mean something."""
    code = f"from importlib.util import find_spec\nprint([name for name in {EXTRA!r} if find_spec(name)])"
    assert run(code, metadata, tmp_path).stdout == "[]\n"
    assert all(find_spec(name) for name in EXTRA)


LINE = r"visionattn: error: this needs \w+, which is not installed: pip install 'visionattn\[(\w+)\]'\n"
NEED_TRAIN = (
    "zoo cbam",
    "train quickstart",
    "train --data photos --model va_resnet10n_cbam",
    "test quickstart va_resnet10n_cbam.digits",
    "init --data photos --model va_resnet10n_cbam",
    "predict a.png --model va_resnet10n_cbam.digits",
    "browse quickstart",
    "download --list",
)


def test_commands_answer_or_name_the_extra(metadata, tmp_path):
    for name in ("photos/cat", "photos/dog"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "a.png").touch()
    (tmp_path / "a.png").touch()
    helping = ("--help", "train --help", "zoo --help", "--version", "configs")
    answers = commands([*helping, *NEED_TRAIN], metadata, tmp_path)
    for line, (status, out, _) in zip(helping, answers, strict=False):
        assert status == 0 and out, line
    for line, (status, _, error) in zip(NEED_TRAIN, answers[len(helping) :], strict=True):
        assert status == 2 and re.fullmatch(LINE, error), (line, error)
        assert re.fullmatch(LINE, error)[1] == "train", line


def test_export_names_its_own_extra(metadata, tmp_path):
    """Where everything else is installed."""
    there = [name for name in EXTRA if not name.startswith("onnx")]
    ((status, _, error),) = commands(
        ["export va_resnet10n_cbam.digits --format onnx"],
        metadata,
        tmp_path,
        before=f"MISSING -= set({there!r})",
    )
    assert status == 2 and re.fullmatch(LINE, error) and re.fullmatch(LINE, error)[1] == "export", error


def test_everything_that_is_imported_is_declared(metadata):
    (info,) = metadata.glob("*.dist-info")
    required = PathDistribution(info).requires or []
    used = [text for text in required if not re.search(r"extra == .test.", text)]
    declared = {re.match(r"[\w-]+", text)[0].lower().replace("_", "-") for text in used}
    owners = packages_distributions()
    for path in (ROOT / "visionattn").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) and not node.level and node.module else []
            for name in {name.partition(".")[0] for name in names} - sys.stdlib_module_names - {"visionattn"}:
                found = {owner.lower().replace("_", "-") for owner in owners.get(name, [name])}
                found |= {NAMES[name]} if name in NAMES else set()  # also where it is not installed
                # Triton comes with PyTorch, where there is one for the machine.
                assert found & declared or name in ("triton", "setuptools"), f"{path.name} imports {name}"
