"""The package as a whole: who may import whom, what importing costs, what is registered, what the wheel carries."""

import ast
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import timm

import visionattn
from visionattn.utils.resources import config_dir

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "visionattn"
# Each room may import what stands after it, never before; rooms of one line stand side by side.
FLOORS = [
    ["cli"],
    ["inference", "comparison"],
    ["benchmark"],
    ["checkpoints", "engine"],
    ["testing"],
    ["profiling", "visualization"],
    ["tasks", "data"],
    ["explain"],
    ["models"],
    ["heads"],
    ["plugins", "mixers"],
    ["ops"],
    ["reference"],
    ["catalog"],
    ["utils"],
    ["version"],
]
HEAVY = {
    "mmengine": {"tasks", "data", "engine", "inference", "comparison", "cli"},
    "albumentations": {"data"},
    "cv2": {"data", "visualization", "inference"},
    "triton": set(),
    "torchmetrics": {"engine"},
    "segmentation_models_pytorch": {"tasks"},
}


def imports(path):
    """The modules a file imports, absolute, with names imported from a package counted as modules."""
    package = (".".join(path.relative_to(ROOT).with_suffix("").parts)).split(".")
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level] if node.level else []
            module = ".".join([*above, *([node.module] if node.module else [])])
            found |= {module, *(f"{module}.{alias.name}" for alias in node.names)}
    return found


def room(module):
    parts = module.split(".")
    return parts[1] if parts[0] == "visionattn" and len(parts) > 1 else None


FILES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_downwards(path):
    floor = {name: level for level, names in enumerate(FLOORS) for name in names}
    own = room("visionattn." + ".".join(path.relative_to(PACKAGE).with_suffix("").parts))
    for module in imports(path):
        other = room(module)
        if other in floor and other != own:
            assert floor[other] > floor[own], f"{path.name} of {own} imports {module}"
        heavy = module.split(".")[0]
        if heavy in HEAVY:
            kernels = heavy == "triton" and path.parent == PACKAGE / "ops" / "triton"
            assert own in HEAVY[heavy] or kernels, f"{own} may not import {heavy}"


@pytest.mark.parametrize("folder", ["plugins", "mixers", "models/families"])
def test_papers_stand_on_their_own(folder):
    prefix = f"visionattn.{folder.replace('/', '.')}."
    public = {path.stem for path in (PACKAGE / folder).glob("*.py") if not path.stem.startswith("_")}
    for path in (PACKAGE / folder).glob("[!_]*.py"):
        sideways = {m.rpartition(".")[2] for m in imports(path) if m.startswith(prefix)} & public
        # Softmax attention is what many papers change.
        assert not sideways - {path.stem, "softmax"}, f"{path.name} imports {sideways}"


def python(code):
    """A process of its own, with compiled modules kept as in any installation."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, env=environment)


def test_import_is_light():
    """Two fifths of timm's own at most, whatever the machine."""
    code = """
import gc, sys, time, torch, torchvision
start = time.process_time(); import timm; theirs = time.process_time() - start
gc.collect()  # what timm's import left over is not to be collected on our time
start = time.process_time(); import visionattn; cost = (time.process_time() - start) / theirs
heavy = {'triton', 'mmengine', 'cv2', 'albumentations', 'matplotlib', 'torchmetrics'} & set(sys.modules)
import json; print(json.dumps([cost, sorted(heavy)]))
"""
    results = [json.loads(python(code).stdout) for _ in range(3)]
    # torch itself imports triton where it is installed; what counts is what we add.
    before = json.loads(python("import sys, torchvision, timm, json; print(json.dumps(sorted(sys.modules)))").stdout)
    assert set(results[0][1]) <= set(before)
    assert min(cost for cost, _ in results) < 0.4


def test_kernels_are_not_imported_before_they_are_wanted():
    code = """
import sys, torch
from visionattn.ops import explain, map_pools
from visionattn.plugins import CBAM, ULSAM
x = torch.ones(2, 16, 4, 4)
CBAM(16)(x), ULSAM(16)(x), explain(map_pools, x, backend="triton")
print([name for name in sys.modules if name.startswith("visionattn.ops.triton")])
"""
    done = python(code)
    assert done.stdout.strip() == "[]", done.stderr


def test_names_do_not_clash_with_timm():
    code = "import timm, json; print(json.dumps([timm.list_models(), timm.list_modules()]))"
    models, modules = json.loads(python(code).stdout)
    assert not [name for name in models if name.startswith("va_")]
    assert not {path.stem for path in (PACKAGE / "models" / "families").glob("va_*.py")} & set(modules)


def test_import_raises_no_warning():
    done = python("import warnings; import timm; warnings.simplefilter('error'); import visionattn")
    assert done.returncode == 0, done.stderr


def test_every_config_is_short_and_loads():
    import torch
    from mmengine.registry import MODELS

    from visionattn.data import Pipeline
    from visionattn.engine import list_configs, load_config
    from visionattn.engine.runner import _check_schedule

    assert "classification/quickstart" in list_configs()
    for name in list_configs():
        config = load_config(name)
        backbone = config.model.backbone
        baseline = "stamps" in name or name.startswith("classification/mambaout_")
        assert backbone.model_name.startswith("va_") or "attach" in config.model or baseline, name
        backbone.pretrained = False
        with torch.device("meta"):
            task = MODELS.build(config.model)
        _check_schedule(config)
        for part in ("train", "test"):
            Pipeline(config[f"{part}_dataloader"].dataset.pipeline)
        for score in config.test_evaluator.scores.values():
            assert score.get("num_classes", task.num_classes) == task.num_classes, name
        assert config.default_hooks.checkpoint.save_best.partition("/")[0] in config.val_evaluator.scores, name
    for path in config_dir().rglob("*.py"):
        assert len(path.read_text().splitlines()) <= 60, path


def test_wheel_carries_configs_tools_and_checkpoints(tmp_path):
    command = ["pip", "wheel", "--no-deps", "--no-build-isolation", "-q", "-w", str(tmp_path), "."]
    source = tmp_path / "source"
    for name in ("visionattn", "configs", "tools", "checkpoints"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE", "NOTICE"):
        shutil.copy(ROOT / name, source)
    done = subprocess.run([sys.executable, "-m", *command], cwd=source, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    assert visionattn.__version__ in wheel.name
    names = zipfile.ZipFile(wheel).namelist()
    for kind in ("configs/classification/quickstart.py", "tools/train.py", "checkpoints/manifest.json"):
        assert f"visionattn/_share/{kind}" in names
    assert any(name.endswith(".safetensors") for name in names)
    assert "visionattn/explain/viewer.html" in names


def test_docs_name_every_network():
    named = set()
    for pattern in re.findall(r"`(va_[\w{},]+)`", (ROOT / "docs" / "networks.md").read_text()):
        parts = [part.split(",") for part in re.split(r"[{}]", pattern)]
        named |= {"".join(choice) for choice in itertools.product(*parts)}
    assert named == set(timm.list_models("va_*"))


def documented_arguments(node):
    """Names under `Args:` of a function's or class's docstring."""
    section = re.search(r"^Args:\n((?:    .*\n|\n)+)", (ast.get_docstring(node) or "") + "\n", re.MULTILINE)
    names = re.findall(r"^    (?! )(\**\w+(?:, \**\w+)*):", section[1], re.MULTILINE) if section else []
    return [name.strip(" *") for entry in names for name in entry.split(",")]


def declared_arguments(node):
    """Those of a function; of a class those of `__init__`, or the fields of a dataclass."""
    if isinstance(node, ast.ClassDef):
        made = [part for part in node.body if isinstance(part, ast.FunctionDef) and part.name == "__init__"]
        if made:
            return declared_arguments(made[0])
        if any("dataclass" in ast.unparse(decorator) for decorator in node.decorator_list):
            return [part.target.id for part in node.body if isinstance(part, ast.AnnAssign)]
        return None if node.bases and ast.unparse(node.bases[0]) != "NamedTuple" else []
    every = node.args
    return [one.arg for one in (*every.posonlyargs, *every.args, *every.kwonlyargs, every.vararg, every.kwarg) if one]


def test_docstrings_name_arguments_that_there_are():
    """Otherwise the API reference of the site does not build."""
    wrong = []
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and (names := documented_arguments(node)):
                declared = declared_arguments(node)  # none: inherited
                unknown = [] if declared is None else [name for name in names if name not in declared]
                wrong += [f"{path.relative_to(ROOT)}:{node.lineno} {node.name}: {name}" for name in unknown]
    assert not wrong, "\n".join(wrong)
