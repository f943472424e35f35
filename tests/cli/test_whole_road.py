"""The whole road of each task on files of one's own, every step a command, the last ones in fresh processes."""

import json
import subprocess
import sys

import pytest
from test_own_data import digits, folders, write_masks, write_yolo  # noqa: F401  (fixtures)

MODEL = "va_resnet10n"
SHORT = [
    f"{split}_dataloader.{setting}"
    for split in ("train", "val", "test")
    for setting in ("num_workers=0", "persistent_workers=False")
]


def write_folders(digits, folder):  # noqa: F811
    import cv2

    for number, (picture, label) in enumerate(digits):
        place = folder / "images" / ("zero", "one", "two")[label]
        place.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(place / f"{number}.png"), picture)


def fresh(tmp_path, *arguments):
    """A command in a process of its own."""
    command = [sys.executable, "-m", "visionattn.cli", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(
    ("write", "task", "pictures", "attach"),
    [
        (write_folders, "classification", "data/images/zero", ["model.attach.plugin=ela_l"]),
        (write_yolo, "detection", "data/images", []),
        (write_masks, "segmentation", "data/images", ["model.attach.plugin=simam"]),
    ],
    ids=["classification", "detection", "segmentation"],
)
def test_from_files_to_an_exported_network(run_cli, digits, tmp_path, write, task, pictures, attach):  # noqa: F811
    write(digits, tmp_path / "data")
    data = "data/images" if task == "classification" else "data"
    start = ["train", "--data", data, "--model", MODEL, "--task", task, "--work-dir", "run"]
    code, _, err = run_cli(*start, "--cfg-options", "train_cfg.max_epochs=1", *attach, *SHORT)
    assert code == 0, err
    code, _, err = run_cli(
        "train", "run.py", "--work-dir", "run", "--resume", "--cfg-options", "train_cfg.max_epochs=2", *attach, *SHORT
    )
    assert code == 0, err
    assert (tmp_path / "run" / "last_checkpoint").read_text().strip().endswith("epoch_2.pth")
    last = "run/epoch_2.pth"
    code, _, err = run_cli("test", "run.py", last, "--out", "scores.json", "--cfg-options", *attach, *SHORT)
    assert code == 0, err
    assert json.loads((tmp_path / "scores.json").read_text())

    name = f"{MODEL}.road"
    code, _, err = run_cli(
        "publish", "run.py", last, "--name", name, "--license", "mit", "--cfg-options", *attach, *SHORT
    )
    assert code == 0, err
    (file,) = (tmp_path / "checkpoints").glob("*.safetensors")
    fresh(tmp_path, "predict", pictures, "--model", name, "--out", "seen")
    lines = (tmp_path / "seen" / "predictions.jsonl").read_text().splitlines()
    assert len(lines) == len(list((tmp_path / pictures).iterdir()))
    said = fresh(tmp_path, "export", file, "--format", "pt2", "--out", "network.pt2")
    assert "difference" in said or "objects" in said, said
    assert (tmp_path / "network.pt2").stat().st_size > 100_000
