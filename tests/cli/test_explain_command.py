"""`visionattn explain` on packaged networks."""

import numpy as np
import pytest
from PIL import Image


@pytest.fixture
def photo(tmp_path):
    path = tmp_path / "photo.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (80, 60, 3), np.uint8)).save(path)
    return path


def test_maps_of_a_transformer(run_cli, photo, tmp_path):
    code, out, _ = run_cli(
        "explain", photo, "--model", "va_stm_davit_nano.digits", "--method", "relevance,rollout", "attention",
        "--target", 3, "--layer", 0, "--query", "5,9", "--heads", "all", "--out", "maps", "--raw",
    )  # fmt: skip
    assert code == 0
    assert out.split() == [f"maps/photo_{name}.png" for name in ("relevance", "rollout", "attention")]
    numbers = np.load(tmp_path / "maps" / "photo.npz")
    assert numbers["rollout"].sum() == pytest.approx(1, abs=1e-4) and (numbers["relevance"] >= 0).all()
    drawn = np.asarray(Image.open(tmp_path / "maps" / "photo_relevance.png"))
    assert drawn.ndim == 3 and min(drawn.shape[:2]) >= 224 and drawn.std() > 0


def test_gates_of_a_cnn(run_cli, photo, tmp_path):
    assert run_cli("explain", photo, "--model", "va_resnet10n_cbam.digits", "--method", "gates")[0] == 0
    assert (tmp_path / "explanations" / "photo_gates_grid.png").is_file()


def test_list(run_cli):
    code, out, _ = run_cli("explain", "--model", "va_resnet10n_cbam.digits", "--list")
    cells = [[cell.strip() for cell in line.split("│")] for line in out.splitlines()]
    rows = {row[1]: row[2] for row in cells if len(row) == 5 and row[1]}
    assert code == 0 and rows["gates"] == "yes" and rows["relevance"] == rows["rollout"] == "no"
    assert "no attention" in " ".join(out.split())


def test_list_shows_the_extra_in_full(run_cli, monkeypatch):
    monkeypatch.setattr("visionattn.explain.offers.find_spec", lambda _: None)
    out = run_cli("explain", "--model", "va_resnet10n_cbam.digits", "--list")[1]
    assert "pip install 'visionattn[explain]'" in " ".join(out.replace("│", " ").split())


@pytest.mark.parametrize(
    "arguments, message",
    [
        ([], "name pictures or folders of pictures, or ask with --list"),
        (["photo.png", "--method", "relevanc"], "unknown --method 'relevanc'"),
        (["photo.png", "--query", "3"], "--query must be 2 whole numbers with commas between them, got '3'"),
        (["photo.png", "--target", "10"], r"--target must lie in 0..9, got 10"),
        (["photo.png", "--method", "attention", "--layer", "80"], "--layer must lie in 0..7, got 80"),
        (["photo.png", "--method", "attention", "--query", "900,3"], "query must lie inside the image"),
        (["photo.png", "--method", "attention", "--query", "1,1", "--heads", "9"], "--heads must lie in 0..0, got 9"),
        (["photo.png", "--method", "gates"], "has no gating blocks"),
    ],
)
def test_mistakes(run_cli, photo, arguments, message):
    if "attention" in arguments and "--layer" not in arguments:
        arguments = [*arguments, "--layer", "0"]
    code, _, err = run_cli("explain", *arguments, "--model", "va_stm_davit_nano.digits")
    assert code == 2 and message in err and err.count("\n") == 1
