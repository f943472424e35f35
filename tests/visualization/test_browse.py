"""`visionattn browse`: a picture of what the data pipeline feeds the network, for every task."""

import cv2
import numpy as np
import pytest

from visionattn.engine import draw_samples, load_config
from visionattn.utils.resources import config_dir


def scenes(task):
    return config_dir() / "_base_" / "datasets" / f"digit_scenes_{task}.py"


@pytest.mark.parametrize("config", ["quickstart", *map(scenes, ("detection", "instance", "semantic"))])
def test_every_task_can_be_browsed(run_cli, tmp_path, config):
    code, out, _ = run_cli("browse", config, "--count", "5", "--columns", "3", "--out", "seen/b.png")
    assert code == 0 and "train samples" in out
    picture = cv2.imread(str(tmp_path / "seen" / "b.png"))
    assert picture.shape[1] == 3 * 480 + 2 * 8 and picture.shape[0] > 2 * 480
    assert [path.name for path in (tmp_path / "seen").iterdir()] == ["b.png"]


def test_it_shows_the_run_s_own_first_samples():
    config = load_config(scenes("detection"))
    first = draw_samples(config, "train", 2)
    assert np.array_equal(first, draw_samples(config, "train", 2))
    config.randomness = {"seed": 1}
    assert not np.array_equal(first[:480], draw_samples(config, "train", 2)[:480])
    assert draw_samples(config, "test", 1).shape[1] == 480


def test_there_may_be_fewer_samples(run_cli):
    code, out, _ = run_cli("browse", scenes("semantic"), "--cfg-options", "train_dataloader.dataset.length=3")
    assert code == 0 and f"{3 * 480 + 2 * 8}x" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--count", "0"], "--count and --columns must be at least 1, got 0 and 4"),
        (["--out", "b.txt"], "--out must end in .png or .jpg, got b.txt"),
    ],
)
def test_wrong_arguments(run_cli, arguments, message):
    code, _, err = run_cli("browse", "quickstart", *arguments)
    assert code == 2 and message in err
