"""Examples: scripts of cells that are notebooks and pages of the site at once.

A script in `examples` is cut into cells by lines `# %%`, as editors and jupytext do; `# %% [markdown]` begins text.

    python -m visionattn.testing.notebooks

runs the most visual ones and writes each as a notebook with its results beside it. Tests run every script, and hold
that no notebook is stale.
"""

import argparse
import ast
import base64
import io
import json
import os
import re
import tempfile
from collections.abc import Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from visionattn.utils.files import replacing

__all__ = ["FOLDER", "NOTEBOOKS", "Cell", "example_page", "make_notebook", "read_script", "run_cells", "scripts"]

FOLDER = Path(__file__).parents[2] / "examples"
# Scripts that are kept as notebooks, too.
NOTEBOOKS = ("compare", "detector", "explain", "segmentor")


class Cell(NamedTuple):
    """A part of a script.

    Attributes:
        kind: `markdown` or `code`.
        source: Its text.
    """

    kind: str
    source: str


def scripts() -> list[Path]:
    """The scripts of `examples`, by name."""
    return sorted(FOLDER.glob("*.py"))


def read_script(text: str) -> list[Cell]:
    """The cells of a script.

    Raises:
        ValueError: If it does not begin with one.
    """
    before, *parts = re.split(r"^# %%(.*)\n", text, flags=re.MULTILINE)
    if before.strip() or not parts:
        raise ValueError(f"a script of cells begins with a line '# %%', got {text[:40]!r}")
    cells = []
    for mark, source in zip(parts[::2], parts[1::2], strict=True):
        if mark.strip() == "[markdown]":
            cells.append(Cell("markdown", re.sub(r"^# ?", "", source.strip(), flags=re.MULTILINE)))
        else:
            cells.append(Cell("code", source.strip()))
    return cells


def run_cells(cells: Sequence[Cell], name: str) -> list[list[dict[str, Any]]]:
    """Runs the code of cells in one namespace, in the current folder.

    Args:
        cells: Of a script.
        name: What tracebacks call it.

    Returns:
        The outputs of each cell as notebooks store them: what it printed, and the value of an expression at its end.
    """
    names: dict[str, Any] = {"__name__": "__main__"}
    outputs = []
    for number, cell in enumerate(cells):
        outputs.append(_run(cell.source, f"{name}, cell {number}", names) if cell.kind == "code" else [])
    return outputs


def make_notebook(cells: Sequence[Cell], outputs: Sequence[Sequence[dict[str, Any]]]) -> str:
    """A notebook in Jupyter's format 4.5 as text.

    Args:
        cells: Of a script.
        outputs: Of each cell, as `run_cells` gives them.
    """
    made = []
    for number, (cell, found) in enumerate(zip(cells, outputs, strict=True)):
        entry = {"cell_type": cell.kind, "id": f"cell-{number}", "metadata": {}}
        entry["source"] = cell.source.splitlines(keepends=True)
        made.append(entry if cell.kind == "markdown" else {**entry, "execution_count": None, "outputs": list(found)})
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    about = {"kernelspec": kernel, "language_info": {"name": "python"}}
    book = {"cells": made, "metadata": about, "nbformat": 4, "nbformat_minor": 5}
    return json.dumps(book, indent=1, ensure_ascii=False) + "\n"


def example_page(path: Path) -> str:
    """Markdown of a script, with the results that the notebook beside it stores, if there is one.

    Raises:
        ValueError: If the notebook is of another script.
    """
    cells = read_script(path.read_text(encoding="utf-8"))
    book = path.with_suffix(".ipynb")
    stored = json.loads(book.read_text(encoding="utf-8"))["cells"] if book.is_file() else [{}] * len(cells)
    if len(stored) != len(cells):
        raise ValueError(f"{book.name} is stale: run `python -m visionattn.testing.notebooks`")
    lines = []
    for cell, entry in zip(cells, stored, strict=True):
        lines += [cell.source if cell.kind == "markdown" else f"```python\n{cell.source}\n```", ""]
        for output in entry.get("outputs", ()):
            lines += [_shown(output), ""]
    both = " and as a notebook" if book.is_file() else ""
    return "\n".join([*lines, f"In the repository: `examples/{path.name}`{both}.", ""])


def _run(source: str, name: str, names: dict[str, Any]) -> list[dict[str, Any]]:
    tree = ast.parse(source, name)
    last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    with redirect_stdout(io.StringIO()) as printed:
        exec(compile(tree, name, "exec"), names)
        value = eval(compile(ast.Expression(last.value), name, "eval"), names) if isinstance(last, ast.Expr) else None
    outputs: list[dict[str, Any]] = []
    if text := printed.getvalue():
        outputs.append({"name": "stdout", "output_type": "stream", "text": text.splitlines(keepends=True)})
    if isinstance(value, Image.Image):
        outputs.append({"data": {"image/png": _png(value)}, "metadata": {}, "output_type": "display_data"})
    return outputs


def _png(picture: Image.Image) -> str:
    """A picture of 256 colours in base64: notebooks travel with the repository."""
    file = io.BytesIO()
    picture.convert("RGB").quantize(256).save(file, "png", optimize=True)
    return base64.b64encode(file.getvalue()).decode()


def _shown(output: dict[str, Any]) -> str:
    if output["output_type"] == "stream":
        return f"```text\n{''.join(output['text']).rstrip()}\n```"
    return f'<img alt="What the code above draws" src="data:image/png;base64,{output["data"]["image/png"]}">'


def main() -> None:
    """Runs the scripts that are notebooks, too, and writes these."""
    argparse.ArgumentParser(prog="python -m visionattn.testing.notebooks", description=main.__doc__).parse_args()
    os.environ.setdefault("MPLBACKEND", "agg")
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)  # where the scripts leave their pictures
        made = {}
        for name in NOTEBOOKS:
            cells = read_script((FOLDER / f"{name}.py").read_text(encoding="utf-8"))
            made[name] = make_notebook(cells, run_cells(cells, name))
        os.chdir(FOLDER)
    for name, text in made.items():
        with replacing(FOLDER / f"{name}.ipynb") as temporary:
            temporary.write_text(text, encoding="utf-8")
        print(f"written: examples/{name}.ipynb")


if __name__ == "__main__":
    main()
