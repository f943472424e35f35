"""Every script of `examples` runs and shows what it says; the notebooks beside them are made of today's scripts."""

import json
import re

import pytest
from PIL import Image

from visionattn.testing import notebooks

# Script -> what its output must say: a pattern whose group is a share in per cent, and the least that it may be.
SHOWN = {
    "attach": (r"with attention (\S+)%", 90),
    "compare": (r"va_resnet10n_cbam .* (\S+)%", 80),
    "detector": (r"(\d+) of \d+ digits found", 20),
    "explain": (r"stages\.3\.blocks\.1\.attn\.fn +spatial +(\d)", 1),
    "export": (r"(\S+)% of 64 digits are right", 95),
    "own_photos": (r"classes: even, odd\n.*\n(\S+)% of \d+ pictures", 70),
    "replace_attention": (r"after training it (\S+)%", 75),
    "segmentor": (r"(\S+)% of the pixels", 95),
}
FILES = {"detector": 1, "explain": 2, "segmentor": 1, "compare": 1}


def test_all_scripts_are_here():
    names = {path.stem for path in notebooks.scripts()}
    assert names == set(SHOWN)
    assert {path.stem for path in notebooks.FOLDER.glob("*.ipynb")} == set(notebooks.NOTEBOOKS) <= names
    index = (notebooks.FOLDER / "README.md").read_text()
    for path in (*notebooks.scripts(), *notebooks.FOLDER.glob("*.ipynb")):
        assert f"({path.name})" in index


@pytest.mark.parametrize("name", SHOWN)
def test_script_runs(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "agg")
    cells = notebooks.read_script((notebooks.FOLDER / f"{name}.py").read_text())
    assert cells[0].kind == "markdown" and cells[0].source.startswith("# ")
    outputs = notebooks.run_cells(cells, name)
    text = "".join("".join(part["text"]) for found in outputs for part in found if "text" in part)
    pattern, least = SHOWN[name]
    found = re.search(pattern, text)
    assert found and float(found[1]) >= least, text
    pictures = sum("data" in part for found in outputs for part in found)
    assert pictures == FILES.get(name, 0) == len(list(tmp_path.glob("*.png")))
    for path in tmp_path.glob("*.png"):
        low, high = Image.open(path).convert("L").getextrema()
        assert high - low > 100, f"{path.name} shows nothing"


@pytest.mark.parametrize("name", notebooks.NOTEBOOKS)
def test_notebooks_are_fresh(name):
    cells = notebooks.read_script((notebooks.FOLDER / f"{name}.py").read_text())
    book = json.loads((notebooks.FOLDER / f"{name}.ipynb").read_text())
    kept = [(cell["cell_type"], "".join(cell["source"])) for cell in book["cells"]]
    assert kept == [tuple(cell) for cell in cells], "stale: run `python -m visionattn.testing.notebooks`"
    stored = [part for cell in book["cells"] for part in cell.get("outputs", ())]
    assert sum("data" in part for part in stored) == FILES[name]
    assert "<img alt=" in notebooks.example_page(notebooks.FOLDER / f"{name}.py")


def test_cells():
    text = "# %% [markdown]\n# # Title\n#\n# Words.\n\n# %%\nx = 2\nprint(x)\n\n# %%\nx + 1\n"
    cells = notebooks.read_script(text)
    assert cells == [("markdown", "# Title\n\nWords."), ("code", "x = 2\nprint(x)"), ("code", "x + 1")]
    outputs = notebooks.run_cells(cells, "here")
    assert [[part["text"] for part in found] for found in outputs] == [[], [["2\n"]], []]
    book = json.loads(notebooks.make_notebook(cells, outputs))
    assert book["nbformat"] == 4 and [cell["cell_type"] for cell in book["cells"]] == ["markdown", "code", "code"]
    with pytest.raises(ValueError, match="begins with a line '# %%'"):
        notebooks.read_script("x = 1\n")
    with pytest.raises(ZeroDivisionError):
        notebooks.run_cells([notebooks.Cell("code", "1 / 0")], "here")
