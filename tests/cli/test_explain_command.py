"""`visionattn explain` on packaged networks."""

import csv
import json
import re

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


def test_page(run_cli, photo, tmp_path):
    code, out, err = run_cli(
        "explain", photo, "--model", "va_stm_swin_nano.digits", "--html", "pages/page.html", "--layers", "0,2-3",
        "--channels",
    )  # fmt: skip
    assert code == 0, err
    assert out.startswith("pages/page.html (") and "MB): open it in a browser" in out
    text = (tmp_path / "pages" / "page.html").read_text()
    data = json.loads(re.search(r'type="application/json" id="data">(.*?)</script>', text)[1])
    assert [layer["index"] for layer in data["layers"]] == [0, 2, 3]
    assert all(layer["channels"] > 0 for layer in data["layers"])
    assert data["title"] == "va_stm_swin_nano.digits" and data["note"].endswith(" %")
    assert not (tmp_path / "explanations").exists()


def test_statistics(run_cli, photo, tmp_path):
    run = ("explain", photo, photo, "--model", "va_stm_davit_nano.digits", "--statistics", "--csv", "out/heads.csv")
    code, out, err = run_cli(*run, "--picture", "out/heads.png")
    assert code == 0, err
    with Image.open(tmp_path / "out" / "heads.png") as picture:
        assert min(picture.size) > 300
    with (tmp_path / "out" / "heads.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {"layer", "path", "kind", "head", "distance", "entropy", "sinks"} <= rows[0].keys()
    spatial = [row for row in rows if row["kind"] == "spatial"]
    assert spatial and all(0 < float(row["distance"]) < 1.42 for row in spatial)
    assert {row["distance"] for row in rows if row["kind"] == "channel"} == {""}
    assert sum(line.startswith("│") for line in out.splitlines()) == len(rows)
    assert "…" not in out.split("│")[0]  # the names of the columns are whole


@pytest.fixture
def scene(tmp_path):
    """A scene of the packaged detector's and segmentor's test set."""
    from visionattn.data import SyntheticDigits

    sample = SyntheticDigits(split="test", task="detection", size=128, pipeline=[])[0]
    path = tmp_path / "scene.png"
    Image.fromarray(sample["inputs"].permute(1, 2, 0).numpy()).save(path)
    return path


def test_a_detection_and_a_segmentation(run_cli, scene, tmp_path):
    for model, more in (("digit_scenes_fcos", ["--box", "0"]), ("digit_scenes_deeplabv3plus", [])):
        run = ("explain", scene, "--model", f"va_resnet10n_cbam.{model}", "--method", "gates", "--out", model, *more)
        code, out, err = run_cli(*run, "--format", "pdf")
        assert code == 0, err
        path = tmp_path / model / "scene_gates_grid.pdf"
        assert out.strip() == f"{model}/scene_gates_grid.pdf" and path.read_bytes().startswith(b"%PDF")


@pytest.mark.parametrize("model", ["digit_scenes_fcos", "digit_scenes_deeplabv3plus"])
@pytest.mark.parametrize("method", ["gradcam", "captum:occlusion"])
def test_methods_of_other_packages_on_a_detection_and_a_segmentation(model, method, run_cli, scene, tmp_path):
    run = ("explain", scene, "--model", f"va_resnet10n_cbam.{model}", "--method", method, "--raw", "--out", "maps")
    code, out, err = run_cli(*run)
    assert code == 0, err
    assert out.strip() == f"maps/scene_{method.replace(':', '-')}.png"
    found = np.load(tmp_path / "maps" / "scene.npz")[method]
    assert found.shape == (128, 128) and found.max() > 0.05


def test_list_of_a_detector(run_cli):
    code, out, err = run_cli("explain", "--model", "va_resnet10n_cbam.digit_scenes_fcos", "--list")
    cells = [[cell.strip() for cell in line.split("│")] for line in out.splitlines()]
    rows = {row[1]: row[2] for row in cells if len(row) == 5 and row[1]}
    assert code == 0, err
    assert rows["gates"] == "yes" and rows["relevance"] == rows["--html"] == rows["--statistics"] == "no"


@pytest.mark.parametrize(
    ("model", "arguments", "message"),
    [
        ("digits", ["--box", "1"], "--box is for detection, but this network is for classification"),
        ("digits", ["--region", "0,0,5,5"], "--region is for segmentation, but this network is for classification"),
        ("digit_scenes_fcos", ["--method", "gates", "--box", "1000"], "so there is no object 1000"),
        ("digit_scenes_deeplabv3plus", ["--region", "0,0,1"], "--region must be 4 whole numbers"),
        ("digit_scenes_deeplabv3plus", ["--region", "0,0,0,0"], "inside 0,0,0,0: choose another target"),
        ("digits", ["--html", "a.html", "--layers", "3-x"], "--layers must be numbers and ranges"),
        ("digits", ["--layers", "3"], "--layers and --channels are for --html"),
        ("digits", ["--csv", "a.csv"], "--csv is of --statistics: give both"),
        ("digits", ["--picture", "a.png"], "--picture is of --statistics: give both"),
        ("digits", ["--statistics", "--picture", "a.gif"], "--picture must end in .png, .pdf or .svg, got a.gif"),
        ("digits", ["--html", "a.html"], "has no attention that makes probabilities"),
        ("digits", ["scene.png", "--html", "a.html"], "--html shows one picture, got 2"),
    ],
)
def test_mistakes_of_tasks_pages_and_tables(run_cli, scene, model, arguments, message):
    code, _, err = run_cli("explain", scene, *arguments, "--model", f"va_resnet10n_cbam.{model}")
    assert code == 2 and message in err and err.count("\n") == 1


@pytest.mark.parametrize(
    "arguments, message",
    [
        ([], "name pictures or folders of pictures, or ask with --list"),
        (["photo.png", "--method", "relevanc"], "unknown --method 'relevanc'"),
        (["photo.png", "--query", "3"], "--query must be 2 whole numbers with commas between them, got '3'"),
        (["photo.png", "--target", "10"], r"--target must lie in 0..9, got 10"),
        (["photo.png", "--method", "attention", "--layer", "80"], "--layer must lie in 0..7, got 80"),
        (["photo.png", "--method", "attention-gradcam", "--layer", "80"], "layer must lie in 0..7, or be negative"),
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
