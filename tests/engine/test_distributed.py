"""Two processes on CPUs train, evaluate and resume, and count every test image once."""

import json
import os
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image


def started(folder, *arguments, program=("-m", "visionattn.cli")):
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--rdzv-backend=c10d"]
    command += ["--rdzv-endpoint=localhost:0", *map(str, (*program, *arguments)), "--launcher", "pytorch"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)


def torchrun(folder, *arguments, **options):
    done = started(folder, *arguments, **options)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two")
    options = ["--work-dir", folder / "run", "--cfg-options", "train_cfg.max_epochs=2"]
    return folder, torchrun(folder, "train", "quickstart", *options)


def test_trains_and_reports_once(trained):
    folder, printed = trained
    assert printed.count("score     top1") == 1
    assert (folder / "run" / "learning_curve.png").stat().st_size > 0
    assert not list(folder.glob(".dist_test*"))


def test_metric_is_that_of_one_process(trained, run_cli):
    """The 359 test images do not divide by two: the padded one must not count."""
    folder, _ = trained
    checkpoint = folder / "run" / "best_top1.pth"
    torchrun(folder, "test", "quickstart", checkpoint, "--out", "two.json")
    code, *_ = run_cli("test", "quickstart", checkpoint, "--out", folder / "one.json")
    assert code == 0
    one, two = (json.loads((folder / name).read_text()) for name in ("one.json", "two.json"))
    assert one == two
    assert abs(one["top1"] * 359 - round(one["top1"] * 359)) < 1e-4
    logged = [
        json.loads(line)
        for path in (folder / "run").glob("*/vis_data/scalars.json")
        for line in path.read_text().splitlines()
    ]
    assert max(record["top1"] for record in logged if "top1" in record) == one["top1"]


def test_resumes(trained):
    folder, _ = trained
    options = ["--work-dir", folder / "run", "--resume", "--cfg-options", "train_cfg.max_epochs=3"]
    assert "Loaded" in torchrun(folder, "train", "quickstart", *options)
    assert (folder / "run" / "epoch_3.pth").exists()


def test_says_how_to_start_several_processes(run_cli):
    code, _, err = run_cli("train", "quickstart", "--launcher", "pytorch")
    assert code == 2 and "torchrun --nproc-per-node 2" in err


def test_slurm_on_cpus(tmp_path):
    """Two tasks as srun would start them."""
    command = [sys.executable, "-m", "visionattn.cli", "train", "quickstart", "--launcher", "slurm"]
    command += ["--cfg-options", "train_cfg.max_epochs=2", "train_dataloader.batch_size=256"]
    common = {
        "SLURM_NTASKS": "2",
        "SLURM_LAUNCH_NODE_IPADDR": "127.0.0.1",
        "MASTER_PORT": "29511",
        "OMP_NUM_THREADS": "1",
    }
    tasks = [
        subprocess.Popen(
            command,
            cwd=tmp_path,
            env={**os.environ, **common, "SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    printed = [task.communicate(timeout=300)[0] for task in tasks]
    assert [task.returncode for task in tasks] == [0, 0], printed
    assert "score     top1" in printed[0] and "accuracy  top1" not in printed[1]


SLOW_WRITER = """
import time
from visionattn.cli import main
from visionattn.engine import own_data
write = own_data.write_config
def late(*arguments, **options):
    time.sleep(2)
    return write(*arguments, **options)
own_data.write_config = late
main()
"""


@pytest.fixture
def photos(tmp_path):
    for number, name in enumerate(("ant", "bee")):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for picture in range(20):
            pixels = np.full((16, 16, 3), 100 * number + picture, np.uint8)
            Image.fromarray(pixels).save(tmp_path / "photos" / name / f"{picture}.png")
    return tmp_path / "photos"


def test_all_wait_for_the_config_that_the_first_one_writes(photos, tmp_path):
    """It looks through the data, which takes its time; a config of an earlier run may lie in its place."""
    (tmp_path / "slow.py").write_text(SLOW_WRITER)
    (tmp_path / "run.py").write_text("model = None  # of an earlier run\n")
    arguments = ["train", "--data", photos, "--model", "va_resnet10n_cbam", "--work-dir", tmp_path / "run"]
    arguments += ["--cfg-options", "train_cfg.max_epochs=1", "val_dataloader.num_workers=0"]
    arguments += ["val_dataloader.persistent_workers=False", "env_cfg.dist_cfg.timeout=60"]
    printed = torchrun(tmp_path, *arguments, program=[tmp_path / "slow.py"])
    assert printed.count("config    ") == printed.count("score     top1") == 1


def test_nobody_waits_for_a_config_that_cannot_be_written(tmp_path):
    (tmp_path / "empty").mkdir()
    begun = time.monotonic()
    done = started(tmp_path, "train", "--data", tmp_path / "empty", "--model", "va_resnet10n_cbam")
    assert done.returncode != 0 and time.monotonic() - begun < 100
    assert "visionattn: error: no data set recognised in" in done.stderr
    assert "SIGABRT" not in done.stderr and 'visionattn/cli/train.py", line' not in done.stderr
