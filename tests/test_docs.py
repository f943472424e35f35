"""Every code block of the documentation runs."""

import re
from pathlib import Path

import numpy as np
import pytest
from mmengine.registry import DATASETS

from visionattn.tasks import DECODERS, HEADS, LOSS_COLLECTORS, LOSSES

ROOT = Path(__file__).parents[1]
TABLES = (DATASETS, DECODERS, HEADS, LOSS_COLLECTORS, LOSSES)
BLOCKS = [
    block
    for block in re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "extending.md").read_text(), re.DOTALL)
    if not block.startswith("# my_config.py")
]


@pytest.fixture
def tables():
    before = [set(table.module_dict) for table in TABLES]
    yield
    for table, names in zip(TABLES, before, strict=True):
        for name in set(table.module_dict) - names:
            table.module_dict.pop(name)


def test_examples_of_extending_run(tables):
    space = {}
    for block in BLOCKS:
        exec(compile(block, "docs/extending.md", "exec"), space)
    assert len(BLOCKS) == 4
    sample = DATASETS.build(dict(type="Stripes", count=4))[1]
    assert sample["inputs"].shape == (3, 32, 32) and sample["data_samples"]["label"] == 1
    loss = LOSSES.build(dict(type="FocalLoss", ignore_index=-100))
    import torch

    assert loss(torch.randn(4, 3), torch.tensor([0, 1, 2, 0])) > 0
    assert np.isfinite(LOSS_COLLECTORS.build(dict(type="WeightNorm", network=loss, factor=1.0)).losses()["norm"])


def test_links_lead_somewhere():
    pages = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")]
    for page in pages:
        for target in re.findall(r"\]\(([^)#\s]+)", page.read_text()):
            if not target.startswith(("http", "mailto:")):
                assert (page.parent / target).exists(), f"{page.name} links to {target}"
