"""Every command that README, CONTRIBUTING and docs print is run as printed, or is listed with the reason why not.

What takes long is shortened by `--cfg-options` behind what is printed, as a user could; data and pictures are made on
the spot. Commands within sentences, with words in capitals for what the reader puts in, must at least be understood.
"""

import contextlib
import io
import json
import os
import re
import shlex
import struct
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml
from sklearn.datasets import load_digits

from visionattn import cli
from visionattn.data import SyntheticDigits

ROOT = Path(__file__).parents[1]
# The pages that a newcomer walks through, in the order of the site.
(_START,) = (part["Start"] for part in yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"] if "Start" in part)
_LISTED = [next(iter(entry.values())) for entry in _START if isinstance(entry, dict)]
START = [ROOT / "docs" / page for page in _LISTED if page.startswith("start/")]
INSTALL = "pip install '.[train]'\n"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
PROGRAMS = ("bash ", "mypy ", "pip ", "pytest ", "python ", "ruff ", "srun ", "torchrun ", "visionattn ")

WORKERS = [
    f"{name}_dataloader.{key}" for name in ("train", "val") for key in ("num_workers=0", "persistent_workers=False")
]
SHORT = ["--cfg-options", "train_cfg.max_epochs=1", *WORKERS]
FEW = [*SHORT, "train_dataloader.num_batch_per_epoch=2"]
TEST = [f"test_dataloader.{key}" for key in ("num_workers=0", "persistent_workers=False")]
ONE = "va_resnet50_cbam"
# What runs one after the other in one folder: the printed command, and what shortens it.
DIGITS = [
    ("visionattn configs", []),
    # As the quickstart does; `--resume` goes on from it.
    ("visionattn train quickstart", FEW),
    ("visionattn train quickstart --resume", ["--cfg-options", "train_cfg.max_epochs=2", *FEW[2:]]),
    (
        "visionattn publish quickstart work_dirs/quickstart/best_top1.pth --name va_resnet10n_cbam.mine --license mit",
        ["--cfg-options", *TEST],
    ),
    ("visionattn test quickstart va_resnet10n_cbam.digits", ["--cfg-options", *TEST]),
    ("visionattn predict photos/ clip.mp4 --model va_resnet10n_cbam.digits", []),
    ("visionattn export va_resnet10n_cbam.digits --format onnx --dynamic", []),
    ("visionattn explain photos/ --model va_resnet10n_cbam.digits --method gates", []),
    ("visionattn explain photos/ --model va_stm_swin_nano.digits --method relevance,rollout --format pdf", []),
    ("visionattn explain photos/ --model va_stm_swin_nano.digits --statistics --csv heads.csv --picture heads.pdf", []),
    ("visionattn explain new/a.png --model va_stm_swin_nano.digits --html page.html", []),
    ("visionattn explain scene.png --model va_resnet10n_cbam.digit_scenes_fcos --method gates --box 1", []),
    ("visionattn explain scene.png --model va_resnet10n_cbam.digit_scenes_deeplabv3plus --method gates", []),
    ("visionattn zoo cbam", []),
    ("visionattn browse quickstart", []),
    ("visionattn download --list", []),
]
OWN = [
    (f"visionattn train --data photos/ --model {ONE}", SHORT),
    (
        f"visionattn publish work_dirs/photos-{ONE}.py work_dirs/photos-{ONE}/best_top1.pth --name {ONE}.my_photos "
        "--license mit",
        [],
    ),
    (f"visionattn predict new/ --model {ONE}.my_photos", []),
]
REST = [
    [("visionattn train quickstart-detection", FEW)],
    [("visionattn train quickstart-segmentation", FEW)],
    [("visionattn train resnet10n-cbam_128-3e_fashion-mnist --amp", FEW)],
    [("visionattn train quickstart --cfg-options default_hooks.attention.type=AttentionLogHook", FEW[1:])],
    [("visionattn roofline", [])],
    [("visionattn compare --suite diagnostics --scale large --dry-run", ["--rows", "cbam", "swin"])],
]
NOT_RUN = {
    "pip install .[train]": ".ci/run installs everything in a fresh environment",
    "pip install .[train] && visionattn train quickstart": ".ci/run runs this block of README",
    "pip install -e .[test] && pytest": ".ci/run runs this block of README, and these tests are part of it",
    "pytest -m slow": "these tests are part of it",
    "ruff check . && ruff format . && mypy": ".ci/run runs them with --check",
    "torchrun --nproc-per-node 8 -m visionattn.cli train resnet50-cbam_256-100e_imagenet --launcher pytorch": (
        "needs eight GPUs and ImageNet; tests/engine/test_distributed.py starts two processes"
    ),
    "srun --nodes 2 --ntasks-per-node 8 --gpus-per-node 8 visionattn train resnet50-cbam_256-100e_imagenet "
    "--launcher slurm": (
        "needs a cluster; tests/engine/test_distributed.py::test_slurm_on_cpus starts the launcher as srun does"
    ),
    "visionattn convert RESNET50_CBAM_new_name_wrap.pth": (
        "needs the author's file; tests/checkpoints/test_conversion.py converts files made on the spot"
    ),
    "python -m visionattn.benchmark.small_maps": "measures for minutes; tests/benchmark/test_small_maps.py",
    "python -m visionattn.benchmark.steps": "trains ResNets for minutes; tests/benchmark/test_small_maps.py",
    "python -m visionattn.comparison.budgets": "trains a network and changes it; tests/comparison/test_budgets.py",
    "python -m visionattn.comparison.claims": "trains dozens of networks; tests/comparison/test_claims.py",
    "python -m visionattn.comparison.clicks": "trains with three seeds; tests/comparison/test_clicks.py",
    "python -m visionattn.comparison.explanations": (
        "runs eleven networks for minutes; tests/comparison/test_explanations.py"
    ),
    "python -m visionattn.comparison.conditions": "trains several networks on 10,000 scenes with three seeds",
    "visionattn compare --suite diagnostics --out diagnostics.md": (
        "takes hours; tests/comparison/test_diagnostics.py goes the whole way at a small scale"
    ),
    "visionattn train fpn_efficientnet-lite0_8-12e_stamps": "needs Debian's pictures and weights of ImageNet",
}


def split(line):
    """A command without its comment, its words as a shell would see them."""
    return shlex.split(line, comments=True)


def printed(text):
    """The commands of a page: in blocks of bash, and indented by four places."""
    text = re.sub(r" *\\\n\s+", " ", text)
    inside = None
    for line in text.splitlines():
        if line.startswith("```"):
            inside = None if inside is not None else line[3:]
        elif (inside == "bash" or (inside is None and line.startswith("    "))) and line.lstrip().startswith(PROGRAMS):
            yield " ".join(split(line))


def mentioned(text):
    """Commands of ours within sentences."""
    text = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    for code in re.findall(r"`(visionattn [^`]+)`", text):
        yield " ".join(code.split())


def test_every_printed_command_is_run_or_listed():
    shown = {command for page in PAGES for command in printed(page.read_text())}
    run = {command for scenario in (DIGITS, OWN, *REST) for command, _ in scenario}
    run |= {command for page in START for command in printed(page.read_text())} - NOT_RUN.keys()
    listed = {reason: {c for c in shown if c == reason or c.startswith(f"{reason} -")} for reason in NOT_RUN}
    assert not shown - run - set().union(*listed.values()), "neither run here nor listed with a reason"
    assert all(listed.values()), "listed, but not printed"
    assert run - shown == {"visionattn train quickstart"}
    assert len(shown) > 15


def test_ci_runs_the_blocks_that_are_marked_for_it():
    marks = re.findall(r"<!-- ci: (\w+) -->\n```bash\n(.+)\n```", (ROOT / "README.md").read_text())
    script = (ROOT / ".ci" / "run").read_text()
    assert {mark for mark, _ in marks} == {"quickstart", "tests"}
    for mark, block in marks:
        assert f"readme {mark}\n" in f"{script}\n" and " ".join(split(block)) in NOT_RUN


def test_commands_within_sentences_are_understood():
    parser = cli._parser()
    for page in PAGES:
        for command in [*mentioned(page.read_text()), *printed(page.read_text())]:
            if not command.startswith("visionattn ") or command == "visionattn --help":
                continue
            _, name, *arguments = split(command)
            assert name in cli._commands(), f"{page.name}: {command}"
            if not arguments:  # only the command's name
                continue
            try:
                with contextlib.redirect_stderr(io.StringIO()) as error:
                    parser.parse_args([name, *arguments])
            except SystemExit:
                pytest.fail(f"{page.name}: {command}: {error.getvalue()}")


@pytest.fixture
def folder(tmp_path):
    """What the commands find: a folder of classes, new pictures, a scene, a video, Fashion-MNIST's files."""
    data = load_digits()
    for number in range(36):
        picture = cv2.resize((data.images[number] * 15).astype(np.uint8), (64, 64))
        place = tmp_path / "photos" / ("even", "odd")[data.target[number] % 2]
        place.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(place / f"{number}.png"), picture)
    (tmp_path / "new").mkdir()
    cv2.imwrite(str(tmp_path / "new" / "a.png"), picture)
    scene = SyntheticDigits(split="test", task="detection", size=128, pipeline=[])[1]["inputs"]
    cv2.imwrite(str(tmp_path / "scene.png"), scene.permute(1, 2, 0).numpy()[..., ::-1])
    writer = cv2.VideoWriter(str(tmp_path / "clip.mp4"), cv2.VideoWriter_fourcc(*"mp4v"), 5, (64, 64))
    for _ in range(3):
        writer.write(np.full((64, 64, 3), 90, np.uint8))
    writer.release()
    place = tmp_path / "data" / "fashion-mnist"
    place.mkdir(parents=True)
    pictures = np.random.default_rng(0).integers(0, 256, (256, 28, 28), np.uint8)
    labels = np.arange(256, dtype=np.uint8) % 10
    for part in ("train", "t10k"):
        (place / f"{part}-images-idx3-ubyte").write_bytes(
            struct.pack(">4i", 2051, *pictures.shape) + pictures.tobytes()
        )
        (place / f"{part}-labels-idx1-ubyte").write_bytes(struct.pack(">2i", 2049, len(labels)) + labels.tobytes())
    return tmp_path


def walk(scenario, run_cli):
    for command, more in scenario:
        code, out, error = run_cli(*split(command)[1:], *more)
        assert code == 0, f"{command}\n{error}"
        assert out, command


def test_newcomers_walk_through_start(tmp_path):
    """Every block of Start's pages as it is printed, in order, in one shell that begins in an empty folder.

    The package is here already, so that the shell's `pip` has nothing to install; `.ci/run` installs it for real.
    """
    assert {*START} == {*(ROOT / "docs" / "start").glob("*.md")}, "a page of docs/start is not in the navigation"
    text = "\n".join(page.read_text() for page in START)
    blocks = re.findall(r"^```(bash|python)\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    assert len(blocks) == text.count("\n```") // 2 and blocks[0] == ("bash", INSTALL)
    # What an installation puts on the path.
    script = 'pip() { :; }; python() { "$PYTHON" "$@"; }; visionattn() { python -m visionattn.cli "$@"; }\n'
    for number, (language, block) in enumerate(blocks):
        script += f"echo '# block {number}'\n{block}" if language == "bash" else f"python - <<'END'\n{block}END\n"
    (tmp_path / "checkout").mkdir()
    environment = {**os.environ, "PYTHON": sys.executable, "HOME": str(tmp_path)}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, (str(ROOT), environment.get("PYTHONPATH"))))
    command = ["bash", "-euo", "pipefail", "-c", script]
    done = subprocess.run(command, cwd=tmp_path / "checkout", env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    assert not list((tmp_path / "checkout").iterdir()), "a step wrote outside of its folder"
    folder = tmp_path / "ten-minutes"
    lines = (folder / "predictions" / "predictions.jsonl").read_text().splitlines()
    assert len(lines) == 12 and len(list((folder / "explanations").glob("*.png"))) >= 12
    assert "'cat', 'coffee', 'rocket'" in done.stdout and "EfficientLocalAttention" in done.stdout
    # It has learnt: most of the new pieces are told right.
    records = map(json.loads, lines)
    told = [(Path(record["image"]).name.partition("-")[0], record["classes"][0]["label"]) for record in records]
    assert sum(name == label for name, label in told) >= 9, told


def test_commands_on_digits(run_cli, folder):
    walk(DIGITS, run_cli)
    assert (folder / "va_resnet10n_cbam.digits.onnx").is_file()
    assert list((folder / "checkpoints").glob("va_resnet10n_cbam-mine*.safetensors"))
    assert (folder / "page.html").stat().st_size > 100_000 and len((folder / "heads.csv").read_text().splitlines()) > 8
    assert len((folder / "predictions" / "predictions.jsonl").read_text().splitlines()) == 36 + 3


@pytest.mark.parametrize("scenario", [OWN, *REST], ids=lambda scenario: "-".join(scenario[0][0].split()[1:3]))
def test_longer_commands(scenario, run_cli, folder):
    walk(scenario, run_cli)
