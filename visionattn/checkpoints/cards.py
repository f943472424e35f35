"""Human-readable pages about checkpoints: a card for each packaged one, and the table of them."""

import json
from pathlib import Path
from typing import Any

import timm

from visionattn.utils.files import replacing
from visionattn.utils.published import published_in

from .publishing import manifest_entry

__all__ = ["END", "START", "render_cards", "render_table", "write_cards", "write_table"]

START, END = "<!-- checkpoints: start -->", "<!-- checkpoints: end -->"

_INTRODUCTION = """# Checkpoints

`manifest.json` describes each checkpoint: network, data, metrics and who measured them, the command that reproduces
them, licence, origin, size, sha256 and sources. `manifest.schema.json` says what the fields mean.

The small ones were trained here and are part of the package: safetensors files named by the first digits of their
sha256, which carry the same description in their metadata. The others are their authors': nothing of them is shipped.

    visionattn download --list                      # all checkpoints
    visionattn download va_stm_swin_tiny.in1k       # into torch.hub's cache
    timm.create_model('va_stm_swin_tiny.in1k', pretrained=True)      # the same, on first use

A file is looked for in the folder that the environment variable `VISIONATTN_CHECKPOINTS` names, then in
`torch.hub.get_dir()/checkpoints`, then at its sources. Files without a direct download link have to be downloaded by
hand: the error names the page, and the file name to give it in that folder. Where the authors state no hash, the
sha256 of the first file that is used is recorded in the cache, and later files are checked against it.

`visionattn publish` writes a network trained here as one such file; in `./checkpoints`, or in the folder of
`VISIONATTN_CHECKPOINTS`, it is found by its name. `visionattn convert FILE` converts a file of the authors to our keys,
and `visionattn cards` writes this page.

The packaged ones are small networks, trained in minutes to try things out, to compare and to test with; none of them is
meant for real pictures. Their matrices and kernels are stored in eight bits (`visionattn publish --bits 8`): int8 under
the weight's name, and under that name and `::scale` one float32 step for each output channel; `--bits 4` makes it
uint8, which holds two output channels. Loading restores float32, and the metrics are those of these very weights.
"""


def write_cards(manifest: str | Path, out: str | Path) -> str:
    """Writes a page with a card for each packaged or published checkpoint.

    Args:
        manifest: The manifest, or a folder of published files.
        out: The page, a `.md` file.

    Returns:
        Its text.
    """
    text = render_cards(_entries(manifest))
    with replacing(out) as temporary:
        temporary.write_text(text, "utf-8")
    return text


def write_table(manifest: str | Path, page: str | Path) -> str:
    """Writes the table of packaged checkpoints between the two markers of a page.

    Args:
        manifest: The manifest.
        page: A `.md` file that has both marks.

    Returns:
        The table.

    Raises:
        ValueError: If a mark is missing.
    """
    page = Path(page)
    text = page.read_text("utf-8")
    before, start, rest = text.partition(START)
    _, end, after = rest.partition(END)
    if not (start and end):
        raise ValueError(f"{page} has no lines {START} and {END} to put the table of checkpoints between")
    table = render_table(_entries(manifest))
    with replacing(page) as temporary:
        temporary.write_text(f"{before}{START}\n{table}\n{END}{after}", "utf-8")
    return table


def render_table(entries: dict[str, dict[str, Any]]) -> str:
    """The table of packaged checkpoints: `{'<model>.<tag>': entry}` as Markdown."""
    lines = ["| checkpoint | task | data | score | parameters | file |", "|---|---|---|---|---|---|"]
    for name, entry in _packaged(entries).items():
        cells = [f"`{name}`", entry["task"], entry["dataset"], _score(entry), f"{entry['params'] / 1e6:.2f} M"]
        lines.append(f"| {' | '.join(cells)} | {entry['bytes'] / 1e6:.2f} MB |")
    return "\n".join(lines)


def render_cards(entries: dict[str, dict[str, Any]]) -> str:
    """The page of cards: `{'<model>.<tag>': entry}` as Markdown."""
    cards = [_card(name, entry) for name, entry in _packaged(entries).items()]
    return "\n".join([_INTRODUCTION, render_table(entries), "", *cards])


def _card(name: str, entry: dict[str, Any]) -> str:
    shown = entry["input"]
    channels, height, width = shown["input_size"]
    classes = shown["label_names"]
    metrics = ", ".join(f"{metric} {value:.4f}" for metric, value in _headline(entry).items())
    use = (
        f'`timm.create_model("{name}", pretrained=True)`'
        if entry["task"] == "classification"
        else f"`visionattn predict PICTURES --model {name}`"
    )
    facts = {
        "use": use,
        "metrics": f"{metrics}; `{entry['command']}` prints them",
        "size": f"{entry['params']:,} parameters, {entry['macs']:,} multiplications with additions a picture",
        "input": f"{channels}x{height}x{width}, mean {_numbers(shown['mean'])}, standard deviation "
        f"{_numbers(shown['std'])} of pixels in 0..1",
        "classes": f"{len(classes)}: {', '.join(classes)}",
        "config": f"`{entry['config']}`",
        "paper": ", ".join(_papers(entry["model"])),
        "licence": entry["license"],
        "origin": entry["origin"],
        "file": f"`{entry['file']}`, {entry['bytes']:,} bytes, sha256 `{entry['sha256']}`",
    }
    title = f"`{entry['model']}`, {entry['task']} on {entry['dataset']}: {_score(entry)}."
    lines = [f"## {name}", "", title, "", *(f"- **{key}**: {value}" for key, value in facts.items() if value), ""]
    return "\n".join(lines)


def _entries(manifest: str | Path) -> dict[str, dict[str, Any]]:
    if Path(manifest).is_dir():
        return {name: manifest_entry(path) for name, path in sorted(published_in(Path(manifest)))}
    return json.loads(Path(manifest).read_bytes())["checkpoints"]


def _packaged(entries: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {name: entry for name, entry in entries.items() if {"kind": "packaged"} in entry["sources"]}


def _headline(entry: dict[str, Any]) -> dict[str, float]:
    """The overall metrics, without those of single classes (`<name>/<class>`)."""
    whole = {name: value for name, value in entry["metrics"].items() if "/" not in name}
    return whole or entry["metrics"]


def _score(entry: dict[str, Any]) -> str:
    name, value = next(iter(_headline(entry).items()))
    return f"{name} {100 * value:.2f} %"


def _papers(model: str) -> list[str]:
    ids = getattr(timm.get_pretrained_cfg(model), "paper_ids", None) or []
    ids = [ids] if isinstance(ids, str) else ids
    return [f"[{paper}](https://arxiv.org/abs/{paper.removeprefix('arXiv:')})" for paper in ids]


def _numbers(values: list[float]) -> str:
    shown = [f"{value:.4g}" for value in values]
    return shown[0] if len(set(shown)) == 1 else f"({', '.join(shown)})"
