"""Files in the authors' formats, made from the fixtures' key lists, become ours and theirs again."""

import os
import shlex
import sys

import numpy as np
import pytest
import timm
import torch

from visionattn.checkpoints.conversion import convert, export, save
from visionattn.checkpoints.files import read_origin, read_source, save_as
from visionattn.checkpoints.layout import Layout, trace
from visionattn.checkpoints.verifying import verify
from visionattn.cli import main
from visionattn.models import CONVERTERS
from visionattn.testing.fixtures import FOLDER, filled, load

MICRO = {"dims": (32, 64, 96, 128), "depths": (1,) * 4, "num_heads": (1, 2, 3, 4), "down_kernel_size": 3}
# Fixture -> network and arguments that no file tells.
FORMATS = {
    "bam_resnet50": ("va_resnet50_bam", {}),
    "biformer_tiny": ("va_biformer_tiny", {}),
    "bmta_balanced12": ("va_balanced12_bmta", {}),
    "boat_cswin_tiny": ("va_boat_cswin_tiny", {"legacy": True}),
    "boat_swin_tiny": ("va_boat_swin_tiny", {}),
    "cbam_resnet18_cifar": ("va_resnet18_cbam", {"stem_stride": 1}),
    "cbam_resnet50": ("va_resnet50_cbam", {}),
    "coordatt_mobilenetv2": ("va_mobilenetv2_100_coord", {}),
    "davit_micro_overlapped": ("va_davit_tiny", MICRO),
    "davit_tiny": ("va_davit_tiny", {}),
    "flatten_cswin_t": ("va_flatten_cswin_tiny", {}),
    "flatten_deit_t_gap": ("va_flatten_deit_tiny", {}),
    "flatten_pvt_t": ("va_flatten_pvt_tiny", {}),
    "flatten_pvtv2_b0": ("va_flatten_pvtv2_b0", {}),
    "flatten_swin_t": ("va_flatten_swin_tiny", {}),
    "pkcam_resnet18_block": ("va_resnet18_pkcam", {"earlier": "block"}),
    "pkcam_resnet18_ms2d": ("va_resnet18_pkcam", {}),
    "pkcam_resnet18_upsample2d": ("va_resnet18_pkcam", {"earlier": "stage_all", "upsample": "learned"}),
    "pkcam_resnet50_blockstage": ("va_resnet50_pkcam", {"earlier": "block_stage"}),
    "stm_convnext_micro": ("va_stm_convnext_micro", {}),
    "stm_halonet_micro": ("va_stm_halonet_micro", {}),
    "stm_pvt_micro_160x224": ("va_stm_pvt_micro", {"img_size": (160, 224)}),
    "stm_pvt_micro": ("va_stm_pvt_micro", {}),
    "stm_swin_micro": ("va_stm_swin_micro", {}),
    "triplet_resnet18_k3": ("va_resnet18_triplet", {"plugin": {"type": "triplet", "kernel_size": 3}}),
    "triplet_resnet50": ("va_resnet50_triplet", {}),
    "twins_alt_gvt_small": ("va_twins_svt_small", {}),
    "twins_pcpvt_small": ("va_twins_pcpvt_small", {}),
    "ulsam_mobilenetv2_assembled_13_16_g4": ("va_mobilenetv2_100_ulsam", {}),
}
# Smaller networks of the same formats stand for them.
LARGE = ("cbam_resnet50", "davit_tiny", "pkcam_resnet50_blockstage", "triplet_resnet50")
# Run without computing much; the others are verified against the same numbers by the tests of their families.
VERIFIED = (
    "bmta_balanced12",
    "coordatt_mobilenetv2",
    "davit_micro_overlapped",
    "flatten_pvtv2_b0",
    "stm_halonet_micro",
)


def authors_weights(fixture):
    """All entries of an official checkpoint, the tables that the network builds itself among them."""
    keys = load(f"{fixture}_eval").meta["keys"]
    return {key: torch.from_numpy(filled(key, shape)) for key, shape, _ in keys}


def authors_file(fixture, path):
    """A file as authors leave it: wrapped, from several devices, with more beside the weights."""
    weights = {f"module.{key}": value for key, value in authors_weights(fixture).items()}
    torch.save({"epoch": 300, "state_dict": weights, "arch": "x", "best_prec1": torch.tensor(77.6)}, path)


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def reread(path):
    return torch.load(path, weights_only=True)["state_dict"]


@pytest.mark.parametrize("fixture", [pytest.param(f, marks=pytest.mark.slow if f in LARGE else ()) for f in FORMATS])
def test_there_and_back_identically(fixture, tmp_path):
    name, arguments = FORMATS[fixture]
    authors_file(fixture, tmp_path / "author.pth")
    theirs, layout = read_source(tmp_path / "author.pth")
    ours = convert(theirs, layout, name, arguments)
    assert ours.format == "official"
    ours.build().load_state_dict(ours.state_dict)
    path = save(ours, tmp_path)

    # All that leads back is in the file.
    told, arguments, remembered = read_origin(path)
    again = convert(*read_source(path), told, arguments)
    assert again.format == "native" and same(again.state_dict, ours.state_dict)
    exported, layout, dropped = export(again, remembered, "official")
    save_as(exported, layout, tmp_path / "back.pth")
    assert set(dropped) == set(ours.traced.dropped)
    back, original = reread(tmp_path / "back.pth"), reread(tmp_path / "author.pth")
    assert same(back, {key: value for key, value in original.items() if key.removeprefix("module.") not in dropped})


@pytest.mark.parametrize("fixture", [pytest.param(f, marks=() if f in VERIFIED else pytest.mark.slow) for f in FORMATS])
def test_verified_on_recorded_outputs(fixture):
    weights = authors_weights(fixture)
    done = convert(weights, Layout.of(weights), *FORMATS[fixture])
    name, error = verify(done, FOLDER)
    assert name.startswith(fixture) and error < 1e-4


def test_wrong_conversion_is_noticed(monkeypatch):
    weights = authors_weights("stm_halonet_micro")
    done = convert(weights, Layout.of(weights), "va_stm_halonet_micro")
    right = CONVERTERS["va_stm_halonet_micro"]

    def swapped(state_dict, model):
        native = right(state_dict, model)
        a, b = (next(key for key in native if key.endswith(kind)) for kind in ("height_rel", "width_rel"))
        return {**native, a: native[b], b: native[a]}

    monkeypatch.setitem(CONVERTERS, "va_stm_halonet_micro", swapped)
    with pytest.raises(ValueError, match="other outputs than the official network's in stm_halonet_micro"):
        verify(done, FOLDER)


@pytest.mark.parametrize(
    "fixture",
    [
        pytest.param(fixture, marks=() if fixture in ("coordatt_mobilenetv2", "stm_pvt_micro") else pytest.mark.slow)
        for fixture, (_, arguments) in FORMATS.items()
        if not arguments or arguments.keys() & {"plugin", "legacy"}
    ],
)
def test_recognises_what_a_file_is(fixture):
    weights = authors_weights(fixture)
    done = convert(weights, Layout.of(weights))
    assert (done.model, done.arguments) == FORMATS[fixture]
    # Ours are trained with the network as it is by default.
    if "legacy" in done.arguments:
        assert not convert(done.state_dict, Layout.of(done.state_dict)).arguments


@pytest.mark.slow
def test_no_two_networks_have_the_same_weights():
    seen = {}
    for name in CONVERTERS:
        state = timm.create_model(name, num_classes=10, device="meta").state_dict()
        signature = tuple(sorted((key, tuple(value.shape)) for key, value in state.items()))
        assert signature not in seen, f"{name} and {seen.get(signature)}"
        seen[signature] = name


@pytest.mark.parametrize("name", ["davit_tiny", "twins_svt_small"])
def test_timms_format(name, tmp_path):
    torch.manual_seed(0)
    theirs = timm.create_model(name, num_classes=7).state_dict()
    done = convert(theirs, Layout.of(theirs), f"va_{name}")
    assert (done.format, done.arguments) == ("timm" if name == "davit_tiny" else "official", {"num_classes": 7})
    assert not done.traced.dropped
    exported, layout, _ = export(done, None, "timm")
    save_as(exported, layout, tmp_path / "timm.safetensors")
    assert same(read_source(tmp_path / "timm.safetensors")[0], theirs)


def test_ours_go_to_timm_and_to_the_layout_of_any_official_file():
    torch.manual_seed(0)
    own = timm.create_model("va_davit_tiny").state_dict()
    done = convert(own, Layout.of(own), "va_davit_tiny")
    assert done.format == "native"
    exported, *_ = export(done, None, "timm")
    timm.create_model("davit_tiny").load_state_dict(exported)
    exported, *_ = export(done, Layout.of(authors_weights("davit_tiny")), "official")
    assert same(convert(exported, Layout.of(exported), "va_davit_tiny").state_dict, own)
    with pytest.raises(ValueError, match="how the official code lays out va_davit_tiny is not known here; name a file"):
        export(done, None, "official")


def test_another_number_of_classes_than_the_official_file():
    own = timm.create_model("va_flatten_pvtv2_b0", num_classes=7).state_dict()
    done = convert(own, Layout.of(own), "va_flatten_pvtv2_b0")
    exported, layout, _ = export(done, Layout.of(authors_weights("flatten_pvtv2_b0")), "official")
    assert exported["head.weight"].shape == layout.shapes["head.weight"] == (7, 256)
    again = convert(exported, layout, "va_flatten_pvtv2_b0")
    assert again.arguments == {"num_classes": 7} and same(again.state_dict, own)


def test_report_says_what_was_done():
    weights = authors_weights("flatten_pvt_t")
    done = convert(weights, Layout.of(weights), "va_flatten_pvt_tiny")
    first, second = done.report()
    assert first.startswith("168 entries of the official format became 150 of va_flatten_pvt_tiny")
    assert "4 took another shape or order, 16 were put together of several" in first
    assert second == "left out 2, which the official network holds and never uses: norm.weight, norm.bias"
    assert done.traced.origins["stages.0.blocks.0.attn.fn.qkv.weight"] == [
        f"block1.0.attn.{k}.weight" for k in ("q", "kv")
    ]


def test_what_does_not_fit_is_refused():
    weights = authors_weights("davit_micro_overlapped")
    with pytest.raises(ValueError, match=r"fit no network of ours: of va_davit_tiny, .*wrong shape: stem.conv.weight"):
        convert(weights, Layout.of(weights))
    with pytest.raises(ValueError, match="of va_stm_pvt_micro, the weights do not fit STM"):
        convert(weights, Layout.of(weights), "va_stm_pvt_micro")
    with pytest.raises(ValueError, match="the weights are in no format that a network of ours knows"):
        convert({"a": torch.zeros(1)}, Layout.of({"a": torch.zeros(1)}))
    with pytest.raises(ValueError, match="unknown network 'resnet50'"):
        convert(weights, Layout.of(weights), "resnet50")


def test_trace_covers_orders_and_parts_and_refuses_copies():
    layout = Layout({"a": (2, 3), "b": (3,), "c": (2,), "unused": (1,), "empty": (0,)})

    def there(x):
        return {"ab": torch.cat([x["a"].mT.flatten(), x["b"]]).view(3, 3), "c0": x["c"][:1], "c1": x["c"][1:]}

    traced = trace(layout, there)
    assert traced.dropped == ["unused", "empty"]
    theirs = {key: torch.randn(shape) for key, shape in layout.shapes.items()}
    back = traced.back(there(theirs))
    assert all(torch.equal(back[key], theirs[key]) for key in "abc") and len(back) == 3
    with pytest.raises(ValueError, match="in several places"):
        trace(layout, lambda x: {"x": x["a"], "y": x["a"]})
    with pytest.raises(ValueError, match="only a part of c comes back"):
        trace(layout, lambda x: {"x": x["c"][:1]}).back({"x": torch.zeros(1)})
    with pytest.raises(ValueError, match=r"c0 is \(2,\), not \(1,\)"):
        traced.back({**there(theirs), "c0": torch.zeros(2)})


def test_command(tmp_path, monkeypatch, capsys):
    def run(line):
        monkeypatch.setattr(sys, "argv", ["visionattn", *shlex.split(line)])
        try:
            main()
            code = 0
        except SystemExit as stop:
            code = stop.code
        return code, *capsys.readouterr()

    monkeypatch.chdir(tmp_path)
    authors_file("stm_swin_micro", tmp_path / "unified_swin_micro.pth")
    code, out, err = run(f"convert unified_swin_micro.pth --golden {FOLDER} --out ours")
    assert code == 0, err
    assert "unified_swin_micro.pth: va_stm_swin_micro, in the official format" in out
    assert "left out 21, tables that follow from the size of the pictures: stages.0.0.attn.relative_position" in out
    assert "verified: the official network's outputs in stm_swin_micro" in out
    (path,) = (tmp_path / "ours").iterdir()
    said = out.splitlines()[-1]
    assert said.startswith("next  timm.create_model(")
    model = eval(said.removeprefix("next  "), {"timm": timm})
    assert same(model.state_dict(), {**model.state_dict(), **read_source(path)[0]})

    code, out, err = run(f"convert {path} --export official --out plain.pth")
    assert code == 0 and "left out 21 that our network lacks (load with strict=False)" in out, err
    code, out, err = run(f"convert {path} --export official --like unified_swin_micro.pth --out whole.pth")
    assert code == 0 and "converted back, they give the same weights" in out and "left out" not in out, err
    assert same(reread("whole.pth"), reread("unified_swin_micro.pth"))

    for line, fault in (
        ("convert gone.pth", "no checkpoint at gone.pth"),
        (f"convert {path} --export timm", "timm has no network stm_swin_micro"),
        (f"convert {path} --like x.pth", "--like shows the official format"),
        (f"convert {path} --export official --out whole.pth", "whole.pth exists already"),
        ("convert unified_swin_micro.pth --to va_stm_pvt_micro", "do not fit STM"),
    ):
        code, _, err = run(line)
        assert code == 2 and fault in err, err


class Evil:
    def __reduce__(self):
        return os.mkdir, ("hacked",)


def test_nothing_that_lies_beside_the_weights_is_run(tmp_path, run_cli):
    """A folder may look like a checkout of ours."""
    folder = tmp_path / "tests" / "golden"
    folder.mkdir(parents=True)
    (tmp_path / "tests" / "golden.py").write_text("import os; os.mkdir('hacked')")
    (folder / "__init__.py").write_text("import os; os.mkdir('hacked')")
    np.savez(folder / "evil_eval.npz", meta=np.array([Evil()], dtype=object))
    (folder / "broken_eval.npz").write_bytes(b"x")
    np.savez(folder / "other_eval.npz", meta="[1, 2]")
    authors_file("stm_swin_micro", tmp_path / "w.pth")
    code, out, err = run_cli("convert", "w.pth", "--to", "va_stm_swin_micro", "--out", "ours")
    assert code == 0, err
    assert "not verified" in out and not (tmp_path / "hacked").exists()
