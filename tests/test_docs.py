"""The documentation's links; its code blocks run where what they show is tested."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def test_links_lead_somewhere():
    pages = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")]
    for page in pages:
        for target in re.findall(r"\]\(([^)#\s]+)", page.read_text()):
            if not target.startswith(("http", "mailto:")):
                assert (page.parent / target).exists(), f"{page.name} links to {target}"


def python_blocks(page):
    return re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(encoding="utf-8"), flags=re.DOTALL)


@pytest.mark.parametrize("block", python_blocks("docs/attach.md"), ids=["attach", "tokens"])
def test_examples_of_attach_run(block, capsys):
    names = {}
    exec(compile(block, "docs/attach.md", "exec"), names)
    if "Backbone" in names:
        assert len(names["model"].attached) == 3 and "channels" in capsys.readouterr().out
        assert names["model"].modifications[0]["arguments"]["where"] == ["stem", "stages.0", "stages.1"]
