"""Each line of the guide to logging is tried offline in a short run, and what the packages are given is noted."""

import importlib.util
import json
import re
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

GUIDE = (Path(__file__).parents[2] / "docs" / "guides" / "logging.md").read_text()
BLOCKS = dict(re.findall(r"```python\n# config\.py: (.+?)\n(.+?)```", GUIDE, re.DOTALL))
SHORT = [
    *("train_cfg.max_epochs=1", "train_dataloader.num_batch_per_epoch=3", "default_hooks.logger.interval=1"),
    *(f"{part}_dataloader.num_workers=0" for part in ("train", "val")),
]


class Stand(ModuleType):
    """What a tracker's package is asked to do, noted down."""

    def __init__(self, name):
        super().__init__(name)
        self.calls = []
        self.config = SimpleNamespace(update=self._note("config"))
        self.__spec__ = importlib.util.spec_from_loader(name, None)

    def _note(self, name):
        def note(*args, **kwargs):
            self.calls.append((name, args, kwargs))
            return self

        return note

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return self._note(name)

    def named(self, name):
        return [(args, kwargs) for called, args, kwargs in self.calls if called == name]


@pytest.fixture
def run(run_cli, tmp_path):
    def train(title):
        (tmp_path / "config.py").write_text(BLOCKS[title])
        code, _, error = run_cli("train", "config.py", "--work-dir", "run", "--cfg-options", *SHORT)
        assert code == 0, error
        (folder,) = (tmp_path / "run").glob("*/vis_data")
        logged = [json.loads(line) for line in (folder / "scalars.json").read_text().splitlines()]
        losses = [record["loss"] for record in logged if "loss" in record]
        (score,) = (record["top1"] for record in logged if "top1" in record)
        assert len(losses) == 3
        return folder, losses, score

    return train


def test_tensorboard(run):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder, losses, score = run("TensorBoard")
    events = EventAccumulator(str(folder)).Reload()
    assert [event.value for event in events.Scalars("loss")] == pytest.approx(losses)
    assert [event.value for event in events.Scalars("top1")] == pytest.approx([score])


def test_wandb_takes_the_numbers(run, monkeypatch):
    """What the package is given, whichever version is installed."""
    wandb = Stand("wandb")
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    folder, losses, score = run("Weights & Biases")
    ((_, settings),) = wandb.named("init")
    assert settings == {"dir": str(folder), "project": "digits", "mode": "offline"}
    logged = [args[0] for args, _ in wandb.named("log")]
    assert [values["loss"] for values in logged if "loss" in values] == pytest.approx(losses)
    assert [(v["top1"], v["step"]) for v in logged if "top1" in v] == [(pytest.approx(score), 1)]
    assert wandb.named("config")[0][0][0]["train_cfg"]["max_epochs"] == 1 and len(wandb.named("finish")) == 1


def test_wandb_offline(run, monkeypatch):
    pytest.importorskip("wandb", reason="tried offline where wandb is installed")
    monkeypatch.setenv("WANDB_SILENT", "true")
    folder, _, _ = run("Weights & Biases")
    (file,) = folder.glob("wandb/offline-run-*/run-*.wandb")
    content = file.read_bytes()
    assert b"top1" in content and b"loss" in content


def test_mlflow_takes_the_numbers(run, monkeypatch):
    """What the package is given, whichever version is installed."""
    mlflow = Stand("mlflow")
    monkeypatch.setitem(sys.modules, "mlflow", mlflow)
    folder, losses, score = run("MLflow")
    assert mlflow.named("set_tracking_uri") == [((f"sqlite:///{folder / 'mlflow.db'}",), {})]
    logged = [(args[0], kwargs["step"]) for args, kwargs in mlflow.named("log_metrics")]
    assert [values["loss"] for values, _ in logged if "loss" in values] == pytest.approx(losses)
    assert [(values["top1"], step) for values, step in logged if "top1" in values] == [(pytest.approx(score), 1)]
    settings = {key: value for args, _ in mlflow.named("log_params") for key, value in args[0].items()}
    assert settings["train_cfg.max_epochs"] == "1" and max(map(len, settings.values())) <= 500
    assert len(mlflow.named("end_run")) == 1


def test_mlflow_offline(run):
    mlflow = pytest.importorskip("mlflow", reason="tried offline where mlflow is installed")
    folder, losses, score = run("MLflow")
    client = mlflow.MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
    (found,) = client.search_runs([client.get_experiment_by_name("digits").experiment_id])
    assert found.data.metrics["top1"] == pytest.approx(score) and found.info.status == "FINISHED"
    history = client.get_metric_history(found.info.run_id, "loss")
    assert [entry.value for entry in history] == pytest.approx(losses) and [e.step for e in history] == [1, 2, 3]


@pytest.mark.parametrize(("title", "package"), [("Weights & Biases", "wandb"), ("MLflow", "mlflow")])
def test_a_missing_package_is_named(title, package, run_cli, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    # What an installation of today's setup.py declares.
    assert f'"{package}>=' in (Path(__file__).parents[2] / "setup.py").read_text().partition("TRACKERS =")[2]
    monkeypatch.setattr("importlib.metadata.requires", lambda _: [f'{package}; extra == "trackers"'])
    (tmp_path / "config.py").write_text(BLOCKS[title])
    code, _, error = run_cli("train", "config.py", "--work-dir", "run", "--cfg-options", *SHORT)
    assert code == 2 and f"needs {package}, which is not installed: pip install 'visionattn[trackers]'" in error
