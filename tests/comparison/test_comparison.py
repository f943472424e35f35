"""A comparison from training to networks that load by name."""

import csv
import json

import pytest
import timm
import torch

import visionattn  # noqa: F401
from visionattn.comparison import SUITES
from visionattn.comparison.runs import Run
from visionattn.engine import load_config, read_scalars
from visionattn.utils.files import read_checkpoint
from visionattn.utils.published import published_in, read_facts
from visionattn.utils.quantization import pack, unpack

NETWORKS = ("resnet10n", "resnet10n-cbam")
CONFIGS = [f"{network}_64-15e_digits" for network in NETWORKS]


def test_from_training_to_published_networks(run_cli, tmp_path):
    options = [*CONFIGS, "--seeds", 3, "--work-dir", "runs", "--seconds", 0.01, "--publish", "published"]
    options += ["--out", "report.md", "--cfg-options", "train_cfg.max_epochs=2"]
    code, out, error = run_cli("compare", *options)
    assert code == 0, error
    assert "0 of 2 runs are finished, 2 to go" in out

    rows = list(csv.DictReader((tmp_path / "report.csv").open()))
    assert [row["network"] for row in rows] == ["va_resnet10n", "va_resnet10n_cbam"]
    for row, config in zip(rows, CONFIGS, strict=True):
        logged = read_scalars(tmp_path / "runs" / config / "seed3")[1][-1]["top1"]
        assert float(row["seed_3"]) == pytest.approx(logged, abs=1e-4) and logged > 0.5
    assert float(rows[1]["training_time"]) > 0.5 and float(rows[1]["kept_bytes"]) > float(rows[0]["kept_bytes"])
    assert f"visionattn compare {' '.join(CONFIGS)} --cfg-options train_cfg.max_epochs=2 --seeds 3" in out

    published = sorted(published_in(tmp_path / "published"))
    assert [name for name, _ in published] == ["va_resnet10n.comparison", "va_resnet10n_cbam.comparison"]
    for (name, path), config in zip(published, CONFIGS, strict=True):
        entry = read_facts(path)
        assert path.stat().st_size < 1.15 * entry["params"], "not in eight bits"
        assert run_cli("test", config, path, "--out", f"{name}.json")[0] == 0
        assert json.loads((tmp_path / f"{name}.json").read_text()) == pytest.approx(entry["metrics"], abs=1e-9)
        model = timm.create_model(entry["model"], pretrained=True, pretrained_cfg_overlay={"file": str(path)})
        trained = read_checkpoint(tmp_path / "runs" / config / "seed3" / "epoch_2.pth")["state_dict"]
        expected = unpack(pack({key.removeprefix("backbone."): value for key, value in trained.items()}))
        assert all(torch.equal(value, expected[key]) for key, value in model.state_dict().items())

    # What is trained stays trained.
    code, out, _ = run_cli("compare", *options)
    assert code == 0 and "2 of 2 runs are finished, 0 to go" in out


@pytest.mark.slow
def test_smoke(run_cli):
    code, out, error = run_cli("compare", "--smoke")
    assert code == 0, error
    assert "# Smoke test of the comparison" in out and "## va_resnet10n_cbam.smoke" in out


@pytest.mark.parametrize("name", SUITES)
def test_suites_change_the_network_and_nothing_else(name):
    suite = SUITES[name]
    configs = [load_config(*suite.config(name)) for group in suite.groups for name in group]
    networks = [config.model.pop("backbone").model_name for config in configs]
    assert len(set(networks)) == len(networks) and all(map(timm.is_model, networks))
    if name == "mixers":
        assert networks[0] == "va_stm_pool_nano" and "va_stm_swin_nano" in networks
    recipes = [{key: value for key, value in config.to_dict().items()} for config in configs]
    assert all(recipe == recipes[0] for recipe in recipes)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "name configs, or a --suite, or ask for --smoke"),
        (["quickstart", "--smoke"], "one of the three"),
        (["quickstart", "--out", "x.md"], "nothing to compare quickstart with"),
        (CONFIGS, "--out must be a .md file, got None"),
        ([*CONFIGS, "--out", "x.txt"], "--out must be a .md file, got x.txt"),
        ([*CONFIGS, "--out", "x.md", "--jobs", 0], "--jobs must be at least 1, got 0"),
        (["quickstart", "quickstart-detection", "--out", "x.md"], "quickstart-detection is for another task"),
        (["quickstart", "nowhere", "--out", "x.md"], "no config 'nowhere'"),
    ],
)
def test_bad_requests(run_cli, arguments, message):
    code, _, error = run_cli("compare", *arguments)
    assert code == 2 and message in error


def test_failed_training_names_its_log(run_cli, tmp_path):
    run = Run(CONFIGS[0], 0, tmp_path, {"model.backbone.num_classes": 5})
    with pytest.raises(ChildProcessError, match=r"resnet10n_64-15e_digits with seed 0 failed; see .*train\.log"):
        run.train()
    assert "has 10 classes, but the model's num_classes is only 5" in (run.work_dir / "train.log").read_text()


def test_weights_that_score_otherwise_are_refused(tmp_path, monkeypatch):
    run = Run(CONFIGS[0], 0, tmp_path)
    run.work_dir.mkdir(parents=True)
    model = timm.create_model("va_resnet10n", num_classes=10)
    weights = {f"backbone.{key}": value for key, value in model.state_dict().items()}
    torch.save({"state_dict": weights}, run.work_dir / "epoch_15.pth")
    (run.work_dir / "last_checkpoint").write_text("epoch_15.pth")
    log = run.work_dir / "20260101_000000" / "vis_data"
    log.mkdir(parents=True)
    (log / "scalars.json").write_text('{"top1": 0.99, "step": 15}\n')
    assert run.finished
    with pytest.raises(ValueError, match=r"its log says 0\.9900"):
        run.correct()
