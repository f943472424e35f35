"""What every registered network promises: timm's contracts, any size, any dtype, compile, export, ONNX.

The cheap contracts run over all networks on the meta device, the costly ones over one network of each family, made
narrow where the family has no small one, and, with `-m slow`, over all as they are.
"""

import copy
import os

import pytest
import timm
import torch

import visionattn  # noqa: F401
from visionattn.testing.fixtures import relative_error

MODELS = timm.list_models("va_*")
_NARROW = {"dims": (16, 32, 64, 128), "depths": (2, 1, 1, 1), "num_heads": (2, 2, 4, 8)}
# What stands for its family in the default run: a network, and arguments that make it small.
STANDING_FOR_ALL = {
    "va_boat_cswin_tiny": _NARROW,
    "va_boat_swin_tiny": _NARROW,
    "va_davit_tiny": {**_NARROW, "depths": (1, 1, 1, 1)},
    "va_flatten_cswin_tiny": _NARROW,
    "va_flatten_pvtv2_b0": _NARROW,
    "va_flatten_swin_tiny": _NARROW,
    "va_lkca_vit_mini": {},
    "va_mobilenetv1_050_ulsam": {},
    "va_mobilenetv2_050_coord": {},
    "va_resnet10n_bam": {},
    "va_resnet10n_cbam": {},
    "va_resnet18_pkcam": {},
    "va_stm_halonet_nano": {"depths": (2, 1, 1, 1)},
    "va_stm_pvt_nano": {"depths": (2, 1, 1, 1)},
    "va_twins_svt_small": _NARROW,
}
assert set(MODELS) >= set(STANDING_FOR_ALL)
COSTLY = [
    *(pytest.param(name, arguments, id=name) for name, arguments in STANDING_FOR_ALL.items()),
    *(
        pytest.param(name, {}, id=f"{name} as it is", marks=pytest.mark.slow)
        for name in MODELS
        if STANDING_FOR_ALL.get(name) != {}
    ),
]


def create(name, **kwargs):
    torch.manual_seed(0)
    return timm.create_model(name, **kwargs)


def settled(name, **kwargs):
    """A network in evaluation mode, gates away from their start, such that signals neither fade nor grow."""
    model = create(name, **kwargs)
    for key, parameter in model.named_parameters():
        if parameter.ndim <= 1:
            torch.nn.init.normal_(parameter, 1.0 if key.endswith("weight") else 0.0, 0.1)
    model.train()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
                module.momentum = None
        model(torch.randn(2, model.in_chans, 64, 64, device=next(model.parameters()).device))
    return model.eval()


def rounding(model, x):
    """What float32 itself loses: deep networks of random weights magnify what other kernels round otherwise."""
    return relative_error(model(x), copy.deepcopy(model).double()(x.double()))


def strides(model):
    return model.feature_info.reduction()


def columnar(model):
    """Whether all its maps have one resolution, as a plain vision transformer's."""
    return len(set(strides(model))) == 1


@pytest.mark.parametrize("name", MODELS)
class TestOnMeta:
    """Shapes and names, at no cost."""

    def test_classifier_contract(self, name):
        model = create(name, device="meta", num_classes=42).eval()
        x = torch.empty(2, 3, 64, 96, device="meta")
        features = model.forward_features(x)
        assert model.forward_head(features).shape == (2, 42)
        assert model.forward_head(features, pre_logits=True).shape == (2, model.head_hidden_size)
        assert features.shape[1] == model.num_features
        model.reset_classifier(7)
        assert model.forward_head(features).shape == (2, 7) and model.num_classes == 7
        model.reset_classifier(0)
        assert model.forward_head(features).shape == (2, model.head_hidden_size)
        model.reset_classifier(0, "")
        assert model.forward_head(features).shape == features.shape
        assert create(name, device="meta", num_classes=0, global_pool="").forward_head(features).shape == features.shape

    def test_cfg_names_real_parameters(self, name):
        model = create(name, device="meta").eval()
        keys = dict(model.named_parameters())
        cfg = model.pretrained_cfg
        assert f"{cfg['first_conv']}.weight" in keys and f"{cfg['classifier']}.weight" in keys
        assert model.get_classifier() is model.get_submodule(cfg["classifier"])
        size = cfg["input_size"][-2:]
        features = model.forward_features(torch.empty(1, *cfg["input_size"], device="meta"))
        assert features.shape[-2:] == cfg["pool_size"], size
        assert cfg["license"] and cfg["paper_ids"] and cfg["origin_url"]

    def test_features(self, name):
        model = create(name, device="meta", features_only=True).eval()
        stem = strides(model)[0]
        small = model.pretrained_cfg["input_size"][-1] <= 64
        if columnar(model):
            assert strides(model) == [4 if small else 16] * 4
        else:
            assert strides(model) == [stem, 2 * stem, 4 * stem, 8 * stem]
            # Networks for small images keep more of the resolution.
            assert stem == 4 or (stem < 4 and small)
        features = model(torch.empty(2, 3, 64, 96, device="meta"))
        for feature, channels, stride in zip(features, model.feature_info.channels(), strides(model), strict=True):
            assert feature.shape == (2, channels, 64 // stride, 96 // stride)

    @pytest.mark.parametrize("size", [(61, 83), pytest.param((150, 203), marks=pytest.mark.slow)], ids=str)
    def test_features_at_any_size(self, name, size):
        model = create(name, device="meta", features_only=True).eval()
        for feature, stride in zip(model(torch.empty(1, 3, *size, device="meta")), strides(model), strict=True):
            for side, length in zip(feature.shape[-2:], size, strict=True):
                assert length // stride <= side <= length // stride + 1

    def test_input_channels(self, name):
        model = create(name, device="meta", in_chans=1)
        first = model.get_parameter(f"{model.pretrained_cfg['first_conv']}.weight")
        assert first.shape[1] == model.in_chans == 1

    def test_group_matcher_covers_all_parameters(self, name):
        from timm.models import group_parameters

        model = create(name, device="meta")
        for coarse in (True, False):
            groups = group_parameters(model, model.group_matcher(coarse=coarse))
            assert sum(len(members) for members in groups.values()) == len(list(model.parameters()))
        assert isinstance(model.no_weight_decay(), set)

    def test_dtype(self, name):
        model = create(name, device="meta", dtype=torch.bfloat16)
        assert {p.dtype for p in model.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize(("name", "arguments"), COSTLY)
class TestOnCpu:
    """Numbers."""

    def test_backward_reaches_every_parameter(self, name, arguments):
        model = create(name, num_classes=42, drop_path_rate=0.1, **arguments).train()
        model(torch.randn(2, 3, 64, 64)).mean().backward()
        assert not [key for key, parameter in model.named_parameters() if parameter.grad is None]

    def test_checkpointing_changes_nothing(self, name, arguments):
        model = create(name, drop_rate=0.0, **arguments).train()
        x = torch.randn(2, 3, 64, 64)
        torch.manual_seed(1)
        plain = model(x)
        plain.sum().backward()
        gradients = [p.grad.clone() for p in model.parameters()]
        model.zero_grad()
        model.set_grad_checkpointing()
        torch.manual_seed(1)
        checkpointed = model(x)
        checkpointed.sum().backward()
        torch.testing.assert_close(checkpointed, plain)
        torch.testing.assert_close([p.grad for p in model.parameters()], gradients)

    @pytest.mark.parametrize("size", [(61, 83), (150, 203), (512, 384), (33, 32)], ids=str)
    def test_any_size(self, name, arguments, size):
        model = settled(name, **arguments)
        with torch.inference_mode():
            assert model(torch.randn(1, 3, *size)).isfinite().all()
            features = create(name, features_only=True, **arguments).eval()(torch.randn(1, 3, *size))
        assert len(features) == 4

    def test_intermediates(self, name, arguments):
        model = settled(name, **arguments)
        x = torch.randn(1, 3, 64, 64)
        with torch.inference_mode():
            final, intermediates = model.forward_intermediates(x, norm=True)
            torch.testing.assert_close(final, model.forward_features(x))
            # A convolution may follow the last stage, as in MobileNetV2.
            if intermediates[-1].shape == final.shape:
                torch.testing.assert_close(intermediates[-1], final)
            assert len(model.forward_intermediates(x, indices=2, intermediates_only=True)) == 2
        kept = model.prune_intermediate_layers(2)
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

    def test_onnx_agrees(self, name, arguments, tmp_path, request):
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
