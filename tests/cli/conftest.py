"""A short run that the commands' tests share."""

import sys

import pytest


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """The work folder of a short run of the quickstart."""
    from visionattn.cli import main

    work_dir = tmp_path_factory.mktemp("trained") / "run"
    with pytest.MonkeyPatch.context() as patch:
        options = ["--work-dir", str(work_dir), "--cfg-options", "train_cfg.max_epochs=3"]
        patch.setattr(sys, "argv", ["visionattn", "train", "quickstart", *options])
        main()
    return work_dir
