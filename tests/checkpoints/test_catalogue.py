"""Checkpoints by name: what there is, where the files come from, and the networks that load them."""

import copy
import hashlib
import shlex
import sys

import pytest
import safetensors.torch
import timm
import torch
from web import serving

import visionattn  # noqa: F401
from visionattn import checkpoints
from visionattn.cli import main
from visionattn.testing.fixtures import load as load_golden
from visionattn.testing.fixtures import relative_error
from visionattn.utils.download import FetchError, RetryPolicy, recorded_hash
from visionattn.utils.resources import USER_FOLDER, read_manifest
from visionattn.utils.weight_files import cache_dir, find, obtain

NAME = "va_mobilenetv2_100_coord.in1k"
PACKAGED = "va_resnet10n_cbam.digits"


@pytest.fixture
def web():
    with serving() as web:
        yield web


@pytest.fixture
def author(tmp_path_factory):
    """A file as the authors of coordinate attention publish it, and what the network gives for it."""
    golden = load_golden("coordatt_mobilenetv2_eval")
    path = tmp_path_factory.mktemp("author") / "mbv2_ca.pth"
    torch.save(golden.state_dict, path)
    return golden, path.read_bytes()


@pytest.fixture
def entry(web, author, tmp_path, monkeypatch):
    """The manifest's entry, with its source on the local server and an empty cache."""
    manifest = copy.deepcopy(read_manifest())
    manifest[NAME]["sources"] = [{"kind": "url", "url": f"{web.url}/mbv2_ca.pth"}]
    for module in ("models.registry", "models.published", "utils.locate", "checkpoints.catalogue"):
        monkeypatch.setattr(f"visionattn.{module}.read_manifest", lambda: manifest)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.delenv(USER_FOLDER, raising=False)
    web.files["/mbv2_ca.pth"] = author[1]
    return manifest[NAME]


def run(monkeypatch, capsys, line):
    monkeypatch.setattr(sys, "argv", ["visionattn", *shlex.split(line)])
    try:
        main()
        code = 0
    except SystemExit as stop:
        code = stop.code
    return code, *capsys.readouterr()


def test_lists_and_describes():
    assert set(checkpoints.list()) == set(read_manifest())
    assert checkpoints.list("va_davit_tiny") == ("va_davit_tiny.msft_in1k",)
    assert checkpoints.list("va_twins_svt_*") == tuple(
        f"va_twins_svt_{size}.in1k" for size in ("base", "large", "small")
    )
    assert checkpoints.info(PACKAGED)["metrics"]["top1"] > 0.99
    there = ", ".join(name for name in read_manifest() if name.startswith("va_resnet10n_cbam."))
    assert PACKAGED in there.split(", ")
    with pytest.raises(
        ValueError,
        match=f"no checkpoint 'va_resnet10n_cbam.x', neither packaged nor .*; of this network there are: {there}$",
    ):
        checkpoints.info("va_resnet10n_cbam.x")
    with pytest.raises(ValueError, match="no checkpoint fits 'vit_'"):
        checkpoints.list("vit_")
    # What timm cannot build alone, detectors and segmentors, it does not list.
    classifiers = {name for name, entry in read_manifest().items() if entry["task"] == "classification"}
    assert set(read_manifest()) & set(timm.list_pretrained("va_*")) == classifiers


def test_loads_packaged_weights():
    weights = checkpoints.load(PACKAGED)
    timm.create_model("va_resnet10n_cbam", num_classes=10).load_state_dict(weights)


@pytest.mark.parametrize("where", ["download", "offline folder"])
def test_network_by_tag(where, web, entry, author, tmp_path, monkeypatch):
    golden, content = author
    if where == "offline folder":
        entry["sources"] = [{"kind": "page", "url": "https://drive.example/1"}]
        with pytest.raises(FileNotFoundError, match=r"open https://drive.example/1 in .* save the file as mbv2_ca"):
            timm.create_model(NAME, pretrained=True)
        (tmp_path / "mine").mkdir()
        (tmp_path / "mine" / "mbv2_ca.pth").write_bytes(content)
        monkeypatch.setenv(USER_FOLDER, str(tmp_path / "mine"))
    model = timm.create_model(NAME, pretrained=True).eval()
    with torch.inference_mode():
        assert relative_error(model(golden.input), golden.arrays["out_0"]) < 1e-4
    assert cache_dir().joinpath("mbv2_ca.pth").is_file() == (where == "download")
    web.files.clear()
    native = checkpoints.load(NAME)
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in native.items())
    # For another task, with the classifier left out.
    assert timm.create_model(NAME.split(".")[0], pretrained=True, num_classes=3).num_classes == 3


def test_arguments_that_weights_need_come_with_the_tag():
    def kernel(name, **kwargs):
        return timm.create_model(name, device="meta", **kwargs).layer1[0].se.cw.conv.kernel_size

    assert kernel("va_resnet18_triplet.in1k_k3") == (3, 3)
    assert kernel("va_resnet18_triplet") == kernel("va_resnet18_triplet.in1k") == (7, 7)
    assert kernel("va_resnet18_triplet.in1k_k3", plugin={"type": "triplet", "kernel_size": 5}) == (5, 5)
    assert not timm.create_model("va_boat_cswin_tiny", device="meta").stages[0].blocks[0].content.fn.legacy
    assert timm.create_model("va_boat_cswin_tiny.in1k", device="meta").stages[0].blocks[0].content.fn.legacy


def test_unknown_hash_is_written_down_and_kept_to(entry, author, caplog):
    path = obtain(entry)
    digest = hashlib.sha256(author[1]).hexdigest()
    assert recorded_hash(path) == digest and f"recorded sha256 {digest}" in caplog.text
    assert find(entry) == path
    path.write_bytes(b"x" + author[1][1:])
    assert find(entry) is None and "is damaged" in caplog.text
    assert obtain(entry).read_bytes() == author[1]


def test_wrong_file_in_the_offline_folder_is_named(entry, tmp_path, monkeypatch):
    monkeypatch.setenv(USER_FOLDER, str(tmp_path))
    (tmp_path / "mbv2_ca.pth").write_bytes(b"something else")
    for known, fault in (({"bytes": 15}, "has 14 bytes, the manifest says 15"), ({"sha256": "0" * 64}, "is damaged")):
        with pytest.raises(ValueError, match=rf"mbv2_ca.pth \(found by {USER_FOLDER}\) {fault}"):
            find({**entry, **known})


def test_offline_folder_that_is_none(entry, tmp_path, monkeypatch):
    monkeypatch.setenv(USER_FOLDER, str(tmp_path / "gone"))
    with pytest.raises(ValueError, match=rf"{USER_FOLDER} names .*gone, which is not a folder"):
        timm.create_model(NAME, pretrained=True)


def test_weights_of_ones_own_take_the_place_of_the_authors(entry, author, web):
    weights = timm.create_model(NAME.split(".")[0]).state_dict()
    model = timm.create_model(NAME, pretrained=True, pretrained_cfg_overlay={"state_dict": weights})
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in weights.items())
    assert not web.asked


def test_tells_all_that_went_wrong(web, entry):
    entry["sources"] = [{"kind": "url", "url": f"{web.url}/gone"}, {"kind": "page", "url": "https://drive.example/1"}]
    with pytest.raises(FetchError, match=r"404 Not Found. To get va_mob.* by hand, open https://drive.example/1 or"):
        obtain(entry, retry=RetryPolicy(attempts=1))


def test_command_downloads_lists_and_says_what_is_missing(web, entry, monkeypatch, capsys):
    code, out, _ = run(monkeypatch, capsys, "download --list 'va_mobilenet*coord' va_resnet10n_cbam")
    assert code == 0 and "download" in out and "packaged" in out
    code, out, _ = run(monkeypatch, capsys, f"download {NAME} {PACKAGED} --jobs 2 --attempts 1")
    assert code == 0 and f"{NAME}: {cache_dir() / 'mbv2_ca.pth'} (its authors state no hash; recorded sha256" in out
    assert f"{PACKAGED}: " in out and "(verified)" in out
    code, out, err = run(monkeypatch, capsys, f"download va_resnet50_cbam {NAME}")
    assert code == 2 and NAME in out
    assert "va_resnet50_cbam.in1k: To get va_resnet50_cbam.in1k by hand, open https://drive.google.com" in err
    assert "1 of 2 failed to download" in err
    for line, fault in (("download", "name checkpoints, or patterns"), (f"download {NAME} --jobs 0", "--jobs")):
        code, _, err = run(monkeypatch, capsys, line)
        assert code == 2 and fault in err


def test_hub_files_go_through_the_hub_and_are_held_to_the_first_hash(entry, tmp_path, monkeypatch):
    asked = []

    def hf_hub_download(repository, name):
        asked.append((repository, name))
        safetensors.torch.save_file({"x": torch.ones(1)}, tmp_path / name)
        return str(tmp_path / name)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", hf_hub_download)
    assert checkpoints.path("va_twins_svt_small.in1k") == tmp_path / "model.safetensors"
    assert asked == [("timm/twins_svt_small.in1k", "model.safetensors")]
    safetensors.torch.save_file({"x": torch.zeros(1)}, tmp_path / "model.safetensors")
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda *_: str(tmp_path / "model.safetensors"))
    with pytest.raises(ValueError, match=r"twins_svt_small.in1k on the hub\) is damaged or was changed"):
        checkpoints.path("va_twins_svt_small.in1k")


def test_a_file_by_hand_without_a_stated_hash_is_held_to_its_first(entry, author, tmp_path, monkeypatch):
    monkeypatch.setenv(USER_FOLDER, str(tmp_path))
    path = tmp_path / "mbv2_ca.pth"
    path.write_bytes(author[1])
    assert find(entry) == path
    assert recorded_hash(cache_dir() / "mbv2_ca.pth") == hashlib.sha256(author[1]).hexdigest()
    path.write_bytes(author[1] + b"x")
    with pytest.raises(ValueError, match=r"is damaged or was changed: .*recorded at first use.*delete it to accept"):
        find(entry)


@pytest.mark.parametrize("file", ["../../x.pth", "/etc/x.pth", ".hidden", "a/b.pth", ""])
def test_an_entrys_file_is_a_name(file, entry):
    with pytest.raises(ValueError, match="a checkpoint's file must be a plain name, got"):
        obtain({**entry, "file": file})


def test_list_says_which_have_no_hash(monkeypatch, capsys):
    code, out, _ = run(monkeypatch, capsys, "download --list va_mobilenetv2_100_coord va_resnet10n_cbam")
    assert code == 0 and out.count("no hash") == 2  # the one, and what it means
