"""What every registered network promises: timm's contracts, any size, any dtype, compile, export, ONNX.

Networks are tables over hosts. Shapes and names are checked on the meta device for the smallest network of every row
of a family's table; numbers once for each host, on a network of it. With `-m slow` both run over all networks.
What a plug-in or mixer promises on its own is tested over the cards.
"""

import copy
import os
from math import prod

import pytest
import timm
import torch
from networks import NARROW, create, record_calls, rounding, settled
from timm.models import group_parameters

from visionattn.testing.fixtures import relative_error

MODELS = timm.list_models("va_*")
# The smallest of each kind, beside the narrow ones.
SMALLEST = {
    *(name for name in MODELS if name.endswith("_nano") or name.startswith(("va_resnet10n", "va_resnet18n"))),
    *("va_biformer_stl", "va_biformer_tiny", "va_mano_tiny"),
    *("va_balanced12_bmta", "va_boat_cswin_tiny", "va_boat_swin_tiny", "va_davit_tiny", "va_flatten_cswin_tiny"),
    *("va_dhvt_tiny_cifar_p2", "va_dhvt_tiny_p16"),
    *("va_flatten_deit_tiny", "va_flatten_pvt_tiny", "va_flatten_pvtv2_b0", "va_flatten_swin_tiny", "va_lkca_vit_mini"),
    *("va_mobilenetv1_050_ulsam", "va_mobilenetv2_050_coord", "va_mobilenetv2_100_cbam", "va_mobilenetv2_100_ela_b"),
    *("va_mobilenetv2_100_triplet", "va_mobilenetv2_100_ulsam", "va_resnet18_pkcam", "va_resnext50_32x4d_bam"),
    *("va_moh_vit_tiny_75", "va_ravlt_tiny", "va_twins_pcpvt_small", "va_twins_svt_small", "va_vit_softmax_tiny"),
}
# Networks of each host: the pyramid, the columnar one without and with extra tokens, timm's ResNet and MobileNet with
# plug-ins in their blocks and as layers, the ResNet across layers.
HOSTS = {
    "va_stm_davit_nano": {"depths": (2, 1, 1, 1)},
    "va_vit_softmax_nano": {"depth": 4},
    "va_vit_softmax_nano token": {"depth": 4, "global_pool": "token", "num_registers": 2, "num_prompts": 1},
    "va_resnet10n_cbam": {},
    "va_resnet10n_bam": {},
    "va_resnet18n_pkcam": {},
    "va_mobilenetv2_050_coord": {},
    "va_mobilenetv1_050_ulsam": {},
}
# Those whose graphs differ; exporters take long.
GRAPHS = ("va_stm_davit_nano", "va_vit_softmax_nano token", "va_resnet18n_pkcam", "va_mobilenetv1_050_ulsam")
FAMILIES = {  # narrow members of the others, for the slow run
    **dict.fromkeys(
        ("va_boat_cswin_tiny", "va_boat_swin_tiny", "va_flatten_cswin_tiny", "va_flatten_pvtv2_b0"), NARROW
    ),
    **dict.fromkeys(
        ("va_flatten_swin_tiny", "va_ravlt_tiny", "va_twins_svt_small", "va_biformer_tiny", "va_mano_tiny"), NARROW
    ),
    "va_moh_vit_tiny_75": {**NARROW, "shared_heads": (1, 1, 1, 2), "routed_heads": (1, 1, 2, 4)},
    "va_davit_tiny": {**NARROW, "depths": (1, 1, 1, 1)},
    "va_dhvt_tiny_cifar_p4": {"dim": 32, "depth": 4, "num_heads": 2},
}
assert set(MODELS) >= SMALLEST | {name.split()[0] for name in HOSTS} | set(FAMILIES)


def cases(chosen=HOSTS):
    """Networks and arguments: the chosen hosts, and with `-m slow` everything."""
    rows = [(name, name.split()[0], given, name in chosen) for name, given in HOSTS.items()]
    rows += [(f"{name} narrow", name, given, False) for name, given in FAMILIES.items()]
    rows += [(f"{name} as it is", name, {}, False) for name in MODELS]
    marks = {True: (), False: pytest.mark.slow}
    return pytest.mark.parametrize(
        ("name", "arguments"), [pytest.param(name, given, id=key, marks=marks[now]) for key, name, given, now in rows]
    )


def strides(model):
    return model.feature_info.reduction()


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in SMALLEST else pytest.mark.slow) for name in MODELS]
)
class TestOnMeta:
    """Shapes and names, at no cost."""

    def test_parts_and_names(self, name):
        model = create(name, device="meta", dtype=torch.bfloat16).eval()
        keys, cfg = dict(model.named_parameters()), model.pretrained_cfg
        assert {p.dtype for p in keys.values()} == {torch.bfloat16}
        assert f"{cfg['first_conv']}.weight" in keys and f"{cfg['classifier']}.weight" in keys
        assert model.get_classifier() is model.get_submodule(cfg["classifier"])
        assert cfg["license"] and cfg["paper_ids"] and cfg["origin_url"]
        coarse, fine = (group_parameters(model, model.group_matcher(c), reverse=True) for c in (True, False))
        for groups in (coarse, fine):
            assert groups.keys() == keys.keys() and len(set(groups.values())) >= 4
            assert groups[f"{cfg['first_conv']}.weight"] == 0
            assert groups[f"{cfg['classifier']}.weight"] == max(groups.values())
        assert len(set(fine.values())) >= len(set(coarse.values()))
        assert model.no_weight_decay() <= set(keys)
        features = model.forward_features(torch.empty(2, *cfg["input_size"], device="meta", dtype=torch.bfloat16))
        if extra := getattr(model, "num_prefix_tokens", 0):
            assert features.shape[1:] == (extra + prod(cfg["pool_size"]), model.num_features)
        else:
            assert features.shape[1] == model.num_features and features.shape[2:] == cfg["pool_size"]
        assert model.forward_head(features).shape == (2, cfg["num_classes"])
        assert model.forward_head(features, pre_logits=True).shape == (2, model.head_hidden_size)

    def test_features_at_any_size(self, name):
        model = create(name, device="meta", features_only=True, in_chans=1).eval()
        stem, small = strides(model)[0], model.pretrained_cfg["input_size"][-1] <= 64
        if len(set(strides(model))) == 1:  # columnar
            assert stem in ((2, 4) if small else (16,)) and strides(model) == [stem] * 4
        else:
            assert strides(model) == [stem, 2 * stem, 4 * stem, 8 * stem]
            # Networks for small images keep more of the resolution.
            assert stem == 4 or (stem < 4 and small)
        for height, width in ((64, 96), (61, 83)):
            features = model(torch.empty(2, 1, height, width, device="meta"))
            for feature, channels, stride in zip(features, model.feature_info.channels(), strides(model), strict=True):
                assert feature.shape[:2] == (2, channels)
                assert height // stride <= feature.shape[2] <= -(-height // stride)
                assert width // stride <= feature.shape[3] <= -(-width // stride)


@cases()
class TestOnCpu:
    """Numbers."""

    def test_classifier_can_be_changed(self, name, arguments):
        model = create(name, device="meta", num_classes=42, **arguments).eval()
        x = torch.empty(2, 3, 64, 96, device="meta")
        features = model.forward_features(x)
        assert model.forward_head(features).shape == (2, 42)
        model.reset_classifier(7)
        assert model.forward_head(features).shape == (2, 7) and model.num_classes == 7
        model.reset_classifier(0)
        assert model.forward_head(features).shape == (2, model.head_hidden_size)
        model.reset_classifier(0, "")
        assert model.forward_head(features).shape == features.shape
        if "token" not in arguments.values():
            bare = create(name, device="meta", num_classes=0, global_pool="", **arguments)
            assert bare.forward_head(features).shape == features.shape

    def test_training_with_and_without_checkpointing(self, name, arguments):
        """Every parameter gets a gradient, the same either way."""
        model = create(name, num_classes=42, drop_path_rate=0.1, drop_rate=0.0, **arguments).double().train()
        x = torch.randn(2, 3, 64, 64).double()
        results, calls = [], record_calls(model)
        for enable in (False, True):
            model.set_grad_checkpointing(enable)
            model.zero_grad()
            torch.manual_seed(1)
            out = model(x)
            out.square().sum().backward()
            assert not [key for key, parameter in model.named_parameters() if parameter.grad is None]
            results.append([out, *(parameter.grad for parameter in model.parameters())])
        torch.testing.assert_close(*results)
        assert len(calls) > 2 * len(set(calls)), "nothing is computed again"

    @pytest.mark.parametrize("size", [(61, 83), (150, 203), (33, 32), (28, 28), (3, 1)], ids=str)
    def test_any_size(self, name, arguments, size):
        model = settled(name, **arguments)
        with torch.inference_mode():
            assert model(torch.randn(1, 3, *size)).isfinite().all()
            assert len(model.forward_intermediates(torch.randn(1, 3, *size), indices=4, intermediates_only=True)) == 4

    def test_intermediates(self, name, arguments):
        model = settled(name, **arguments)
        x = torch.randn(1, 3, 64, 64)
        with torch.inference_mode():
            final, intermediates = model.forward_intermediates(x, norm=True)
            torch.testing.assert_close(final, model.forward_features(x))
            torch.testing.assert_close(model.forward_head(final), model(x))
            # A convolution may follow the last stage, as in MobileNetV2.
            if intermediates[-1].shape == final.shape:
                torch.testing.assert_close(intermediates[-1], final)
            expected = model.forward_intermediates(x, indices=[1])[1]
            stopping = copy.deepcopy(model)
            calls = record_calls(stopping)
            stopping(x)
            whole = len(calls)
            stopped = stopping.forward_intermediates(x, indices=[1], stop_early=True, intermediates_only=True)
            torch.testing.assert_close(stopped, expected)
            assert len(calls) - whole < 0.7 * whole, "all levels were run"
            features = create(name, features_only=True, out_indices=(1, 2), **arguments).eval()
            own = model.state_dict()
            features.load_state_dict({key: own[key.removeprefix("model.")] for key in features.state_dict()})
            torch.testing.assert_close(features(x), model.forward_intermediates(x, indices=[1, 2])[1])
        assert len(features.state_dict()) < len(own)
        stopping.prune_intermediate_layers([1])
        kept = model.prune_intermediate_layers(2)
        sizes = [sum(p.numel() for p in pruned.parameters()) for pruned in (stopping, model)]
        assert sizes[0] < 0.7 * sizes[1], "no level was dropped"
        with torch.inference_mode():
            assert len(model.forward_intermediates(x, indices=kept, intermediates_only=True)) == 2

    def test_bfloat16_and_channels_last(self, name, arguments):
        model = settled(name, **arguments)
        x = torch.randn(2, 3, 64, 64)
        with torch.inference_mode():
            expected = model(x)
            own = rounding(model, x)
            assert relative_error(model.to(memory_format=torch.channels_last)(x), expected) < max(1e-4, 10 * own)
            # Rounding adds up over a hundred layers of random weights; some magnify even that of the input alone.
            magnified = relative_error(model(x.bfloat16().float()), expected)
            assert relative_error(model.bfloat16()(x.bfloat16()), expected) < max(0.25, 5 * magnified)

    def test_weights_come_back(self, name, arguments, tmp_path):
        """Saved weights load by file, into other numbers of classes and channels too."""
        model = settled(name, **arguments)
        path = tmp_path / "weights.pth"
        torch.save({"state_dict": {f"module.{k}": v for k, v in model.state_dict().items()}}, path)
        loaded = {"pretrained": True, "pretrained_cfg_overlay": {"file": str(path)}, **arguments}
        x = torch.randn(1, 3, 64, 64)
        with torch.inference_mode():
            expected = model(x)
            last = model.forward_intermediates(x, indices=1, intermediates_only=True)[0]
            again = timm.create_model(name, **loaded).eval()
            assert all(torch.equal(value, again.state_dict()[key]) for key, value in model.state_dict().items())
            del model  # the largest network fits into memory a few times only
            # Rounding depends on where in memory the same weights lie, and deep networks of random weights magnify it.
            assert relative_error(again(x), expected) < 1e-4
            del again
            other = timm.create_model(name, num_classes=5, in_chans=1, **loaded)
            assert other.eval()(torch.randn(1, 1, 64, 64)).shape == (1, 5)
            del other
            features = timm.create_model(name, features_only=True, **loaded)
            assert relative_error(features.eval()(x)[-1], last) < 1e-4


@cases(GRAPHS)
class TestGraphs:
    """What compilers and exporters make of a network."""

    def test_compiles_as_one_graph(self, name, arguments):
        torch.compiler.reset()  # only so many networks of one class compile in one process
        model = settled(name, **arguments)
        x = torch.randn(2, 3, 64, 64)
        with torch.inference_mode():
            assert relative_error(torch.compile(model, fullgraph=True, backend="eager")(x), model(x)) < 1e-4

    def test_exports_with_dynamic_batch(self, name, arguments):
        model = settled(name, **arguments)
        x = torch.randn(2, 3, 64, 64)
        program = torch.export.export(model, (x,), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))
        y = torch.randn(5, 3, 64, 64)
        with torch.inference_mode():
            assert relative_error(program.module()(y), model(y)) < 1e-4


@cases(GRAPHS[:3])
def test_onnx_agrees(name, arguments, tmp_path, request):
    onnxruntime = pytest.importorskip("onnxruntime", reason="ONNX parity needs the [test] extra")
    model = settled(name, **arguments)
    needed = 5 * sum(p.nbytes for p in model.parameters())  # the exporter's copies
    if needed > os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"):
        pytest.skip(f"exporting {name} takes {needed / 1e9:.0f} GB of memory")
    path = tmp_path / "model.onnx"
    # The exporter's optimiser takes the square of the nodes: minutes for whole networks, over an hour for BOAT.
    optimize = request.node.get_closest_marker("slow") is None
    settings = {"dynamic_shapes": ({0: torch.export.Dim.DYNAMIC},), "verbose": False, "optimize": optimize}
    torch.onnx.export(model, (torch.randn(2, 3, 64, 64),), path, dynamo=True, **settings)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    x = torch.randn(3, 3, 64, 64)
    (out,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    with torch.inference_mode():
        expected = model(x)
        assert relative_error(torch.from_numpy(out), expected) < max(1e-4, 10 * rounding(model, x))
