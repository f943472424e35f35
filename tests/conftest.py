"""Small runs that several tests share."""

import json
import os
import sys
from collections import Counter
from pathlib import Path

import pytest

if "PYTEST_XDIST_WORKER" in os.environ:  # a core each; read when torch is imported
    os.environ.setdefault("OMP_NUM_THREADS", "1")

from faults.kinds import KINDS, kind_of

from visionattn.utils.resources import config_dir

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"


def pytest_addoption(parser):
    parser.addoption("--record-faults", type=Path, help="write how many faults of each kind were survived, as JSON")


@pytest.hookimpl(tryfirst=True)  # before -m chooses
def pytest_collection_modifyitems(items):
    for item in items:
        if kind := kind_of(item.nodeid):
            item.add_marker(pytest.mark.faults(kind=kind))
            item.user_properties.append(("fault", kind))


def pytest_terminal_summary(terminalreporter, config):
    """How many faults of each kind were injected and survived, where faults were asked for."""
    found = {kind: Counter() for kind in KINDS}
    for report in terminalreporter.stats.get("passed", ()):
        properties = dict(report.user_properties)
        if report.when == "call" and (kind := properties.get("fault")):
            found[kind].update(tests=1, faults=properties.get("faults", 1))
    if path := config.getoption("--record-faults"):
        path.write_text(json.dumps(found, indent=1) + "\n")
    if path or "faults" in config.getoption("-m") or any("faults" in str(place) for place in config.args):
        terminalreporter.section("faults survived")
        for kind, counts in found.items():
            terminalreporter.write_line(f"{kind:16} {counts['faults']:5} in {counts['tests']} tests")


@pytest.fixture
def run_cli(monkeypatch, tmp_path, capsys):
    """Runs a `visionattn` command in an empty folder: `run_cli('train', ...)` -> (exit code, stdout, stderr)."""
    from visionattn.cli import main

    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["visionattn", *map(str, arguments)])
        code = 0
        try:
            main()
        except SystemExit as stop:
            code = stop.code
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


@pytest.fixture(scope="session")
def tiny_config(tmp_path_factory):
    """A config that trains in seconds with every source of randomness switched on."""
    path = tmp_path_factory.mktemp("config") / "tiny.py"
    path.write_text(TINY)
    return path


TINY = f"""
_base_ = [
    {str(config_dir() / "classification" / "quickstart.py")!r},
    {str(config_dir() / "_base_" / "schedules" / "ema.py")!r},
]
model = dict(
    backbone=dict(drop_path_rate=0.2, drop_rate=0.1),
    mixup=dict(mixup_alpha=0.2, cutmix_alpha=1.0, prob=0.8),
)
train_dataloader = dict(batch_size=32, drop_last=False, num_batch_per_epoch=6)
val_dataloader = dict(batch_size=64, num_batch_per_epoch=2)
train_cfg = dict(max_epochs=4)
default_hooks = dict(logger=dict(interval=3))
"""
