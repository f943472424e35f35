"""Growth of time and memory with the number of tokens: what cards state, what is counted, what the record says."""

import json
import sys
from functools import partial

import pytest
from torch import nn

from visionattn import catalog
from visionattn.benchmark import growth as room
from visionattn.benchmark import load, write_report
from visionattn.benchmark.growth import SLACK, degree, measured_degree, peak_of, run_growth, stated_degrees
from visionattn.catalog import Card
from visionattn.cli import main

# On accelerators a mask of all pairs says which are seen.
MASKED = ("sparge", "vmoba")
MIXERS = [card for card in catalog.cards("mixer") if card.standalone]


@pytest.mark.parametrize(
    ("stated", "power"),
    [
        ("N", 1),
        ("N w", 1),
        ("N^2 / r^2", 2),
        ("N w + N^2 / r^2", 2),
        ("N^1.5", 1.5),
        ("N sqrt(N)", 1.5),
        ("N w + N log N", 1),
        ("N^2, or N log N by FFT", 2),
        ("N w, plus N sqrt(N) or N log N for the moving averages", 1.5),
    ],
)
def test_reads_the_power_that_a_card_states(stated, power):
    assert degree(stated) == power
    assert measured_degree([100, 10, 400], [1, 3.0, 3.0 * 40**power]) == pytest.approx(power)


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("card", MIXERS, ids=lambda card: card.name)
def test_memory_grows_no_faster_than_stated(card, device):
    """Counted, not timed: small maps on the CPU, the largest ones of the record where nothing is computed."""
    stated = stated_degrees(card)["memory"]
    if device == "meta":
        sides, stated = (56, 112), 2.0 if card.name in MASKED else stated
    else:
        sides = (28, 56) if stated < 2 else (14, 28)
    held = [peak_of(card, side, dim=32, device=device) for side in sides]
    assert measured_degree([side**2 for side in sides], held) <= stated + SLACK["memory"]
    if stated < 2:
        assert held[-1] < 4 * sides[-1] ** 4  # no float for each pair


class Pairs(nn.Module):
    """Holds all pairs, whatever its card states."""

    def __init__(self, dim, *, num_heads=1, device=None, dtype=None):
        super().__init__()

    def forward(self, x):
        tokens = x.flatten(1, 2)
        return ((tokens @ tokens.mT).softmax(-1) @ tokens).view(x.shape)


@pytest.fixture
def broken(monkeypatch):
    """A mixer that breaks its promise, beside softmax attention."""
    card = Card(name="pairs", title="", kind="mixer", factory=Pairs, summary="", paper="", cost="N w")
    real = room.get
    monkeypatch.setattr(room, "get", lambda kind, name: card if name == "pairs" else real(kind, name))
    return card


def test_a_broken_promise_is_seen(broken, tmp_path):
    held = [peak_of(broken, side, dim=32) for side in (14, 28)]
    assert measured_degree([14**2, 28**2], held) > 1.8
    record = run_growth(tmp_path / "growth.json", names=["pairs", "softmax"], sides=(7, 14, 28), seconds=0.0)
    found = {name: verdict for name, _, _, verdict in room.degrees(record)}
    assert any("memory" in verdict for verdict in found["pairs"]) and not any("memory" in v for v in found["softmax"])
    text = room.format_growth(record)
    assert "`pairs` (memory: N^1." in text or "`pairs` (memory: N^2." in text
    assert "\n| pairs | N w |" in text and "\n| softmax | N^2 |" in text


def test_writes_and_resumes_a_record(tmp_path, monkeypatch, capsys):
    run = partial(run_growth, tmp_path / "growth.json", names=["pool", "softmax"], sides=(4, 7), seconds=0.0)
    record = run()
    assert [(r["name"], r["mode"], r["tokens"]) for r in record["rows"]] == [
        (name, mode, tokens) for name in ("pool", "softmax") for mode in ("fwd", "f+b") for tokens in (16, 49)
    ]
    assert all(row["peak"] > 0 and row["rounds"] >= 3 and row["ratio"]["p50"] > 0 for row in record["rows"])
    assert len(capsys.readouterr().out.splitlines()) == 8
    assert run() == record == load(tmp_path / "growth.json") and not capsys.readouterr().out
    text = write_report(record, tmp_path / "growth.json")
    assert (tmp_path / "growth.md").read_text() == text and "![growth](growth.png)" in text
    assert (tmp_path / "growth.png").stat().st_size > 1000
    monkeypatch.setattr(sys, "argv", ["visionattn", "--from", str(tmp_path / "growth.json")])
    main("benchmark")
    assert (tmp_path / "growth.md").read_text() == text


def test_measures_named_mixers_anew_and_says_at_which_revision(tmp_path, monkeypatch):
    run = partial(run_growth, tmp_path / "growth.json", sides=(4, 7), seconds=0.0)
    before = run(names=["pool", "linear"])
    real = room.surroundings
    monkeypatch.setattr(room, "surroundings", lambda device: real(device) | {"revision": "later"})
    record = run(names=["pool"], anew=True)
    assert [row for row in record["rows"] if row["name"] == "linear"] == before["rows"][4:]
    assert [row["revision"] for row in record["rows"] if row["name"] == "pool"] == ["later"] * 4
    assert "At revision later: pool." in room.format_growth(record)
    monkeypatch.setattr(room, "surroundings", lambda device: real(device) | {"versions": {"torch": "0"}})
    with pytest.raises(ValueError, match=r"a record of versions .* can't be extended with versions"):
        run(names=["pool"])


def test_leaves_out_what_would_take_too_much(broken, tmp_path, monkeypatch):
    monkeypatch.setattr(room, "_BYTES", 1e6)
    record = run_growth(tmp_path / "growth.json", names=["pairs"], sides=(7, 14, 28, 35), seconds=0.0)
    inference = [row for row in record["rows"] if row["mode"] == "fwd"]
    assert [row.get("not_run", "") for row in inference[2:]] == [
        inference[2]["not_run"],
        "smaller maps took too much already",
    ]
    assert "it could hold" in inference[2]["not_run"]
    assert "pairs at N = 784 was not run: it could hold" in room.format_growth(record)
    assert json.loads((tmp_path / "growth.json").read_text())["suite"] == "growth"
