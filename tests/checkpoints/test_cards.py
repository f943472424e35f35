"""Cards and the table of networks are what the manifest says today."""

import json
import re
from pathlib import Path

import pytest

from visionattn.checkpoints import write_cards, write_table
from visionattn.checkpoints.cards import END, START, render_cards, render_table

ROOT = Path(__file__).parents[2]
MANIFEST = ROOT / "checkpoints" / "manifest.json"
ENTRIES = json.loads(MANIFEST.read_text())["checkpoints"]
PACKAGED = [name for name, entry in ENTRIES.items() if {"kind": "packaged"} in entry["sources"]]
STALE = "it does not say what checkpoints/manifest.json says: run `visionattn cards`"


def test_cards_are_fresh():
    assert (ROOT / "checkpoints" / "README.md").read_text() == render_cards(ENTRIES), STALE


def test_the_table_in_docs_is_fresh():
    text = (ROOT / "docs" / "networks.md").read_text()
    assert text.partition(START)[2].partition(END)[0].strip() == render_table(ENTRIES), STALE


def test_every_packaged_checkpoint_has_one_card():
    text = (ROOT / "checkpoints" / "README.md").read_text()
    assert re.findall(r"^## (.*)$", text, re.M) == PACKAGED
    for name in PACKAGED:
        card = text.partition(f"## {name}\n")[2].partition("\n## ")[0]
        entry = ENTRIES[name]
        for fact in (entry["sha256"], entry["license"], entry["command"], entry["origin"], f"{entry['params']:,}"):
            assert fact in card, (name, fact)


def test_commands_write_them(run_cli, tmp_path):
    (tmp_path / "networks.md").write_text(f"before\n{START}\nold\n{END}\nafter\n")
    code, *_ = run_cli("cards", "--manifest", MANIFEST, "--out", "cards.md", "--page", "networks.md")
    assert code == 0
    assert (tmp_path / "cards.md").read_text() == render_cards(ENTRIES)
    assert (tmp_path / "networks.md").read_text() == f"before\n{START}\n{render_table(ENTRIES)}\n{END}\nafter\n"


@pytest.mark.parametrize("text", ["no marks\n", "<!-- checkpoints: start -->\n", "<!-- checkpoints: end -->\n"])
def test_a_page_without_both_marks_is_refused(text, tmp_path):
    page = tmp_path / "networks.md"
    page.write_text(text)
    with pytest.raises(ValueError, match="has no lines <!-- checkpoints: start -->"):
        write_table(MANIFEST, page)
    assert page.read_text() == text


def test_missing_manifest(run_cli):
    code, _, error = run_cli("cards", "--manifest", "nowhere.json")
    assert code == 2 and "no manifest at nowhere.json" in error


def test_text_is_returned(tmp_path):
    assert write_cards(MANIFEST, tmp_path / "cards.md") == (tmp_path / "cards.md").read_text()
