"""The documentation's links; its code blocks run where what they show is tested."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def test_links_lead_somewhere():
    pages = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")]
    for page in pages:
        for target in re.findall(r"\]\(([^)#\s]+)", page.read_text()):
            # Pages of mechanisms are made by the build of the site; tests/test_site.py follows their links.
            if not target.startswith(("http", "mailto:", "mechanisms/", "../mechanisms/")):
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


def test_tests_that_pages_name_are_there():
    named = [
        (page, found)
        for page in (ROOT / "docs").rglob("*.md")
        for found in re.findall(r"tests/[\w/]+\.py(?:::\w+)*", page.read_text())
    ]
    assert len(named) > 40
    for page, name in named:
        file, *parts = name.split("::")
        text = (ROOT / file).read_text()
        for part in parts:
            assert re.search(rf"^ *(def|class) {part}\b", text, re.MULTILINE), f"{page.name} names {name}"


def test_figures_of_the_promises():
    page = (ROOT / "docs" / "promises.md").read_text()
    assert f"{len(list((ROOT / 'tests' / 'golden').glob('*.npz')))} recorded fixtures" in page
    text = (ROOT / "tests" / "models" / "test_small_pictures.py").read_text()
    networks = text[text.index("NETWORKS = (") : text.index("@pytest.mark")]
    assert f"{len(re.findall(r'va_', networks))} networks" in page
    rows = re.findall(r"^\| \d+ \|", (ROOT / "docs" / "results" / "situations.md").read_text(), re.MULTILINE)
    assert f"{len(rows)} situations" in page
