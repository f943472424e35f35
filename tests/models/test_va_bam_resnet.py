"""ResNets with BAM against the author's network: values, places, starts."""

import timm
import torch
from networks import create
from timm.optim import param_groups_layer_decay

from visionattn.plugins import BAM
from visionattn.testing.fixtures import authors_file, load, relative_error


def test_golden(tmp_path):
    golden = load("bam_resnet50_eval")
    overlay = authors_file(golden, tmp_path / "author.pth")
    model = timm.create_model("va_resnet50_bam", pretrained=True, pretrained_cfg_overlay=overlay).eval()
    assert sum(p.numel() for p in model.parameters()) == golden.meta["params"]
    with torch.inference_mode():
        features, stages = model.forward_intermediates(golden.input, indices=[1, 2, 3, 4])
        assert relative_error(model.forward_head(features), golden.arrays["out_0"]) < 1e-4
    for index, stage in enumerate(stages):
        assert relative_error(stage.mean((2, 3)), golden.arrays[f"feat_{index}"]) < 1e-4


def test_every_bam_follows_its_stage():
    for name in ("va_resnet18_bam", "va_resnet101_bam"):
        model = create(name, device="meta")
        places = [key for key, module in model.named_modules() if isinstance(module, BAM)]
        assert places == ["layer2.bam", "layer3.bam", "layer4.bam"]
        assert model.layer2.bam.spatial_gate.conv_in.in_channels == model.feature_info[1]["num_chs"]


def test_arguments_reach_the_attention():
    assert create("va_resnet18_bam", bam={"mode": "sum"}).layer3.bam.mode == "sum"


def test_starts():
    model = create("va_resnet18_bam")
    fc = model.layer2.bam.channel_gate.fc0.weight.clone()
    model.init_weights()
    assert not torch.equal(fc, model.layer2.bam.channel_gate.fc0.weight)
    assert model.layer1[0].bn2.weight.all()


def test_layers_are_in_order():
    model = create("va_resnet18_bam", device="meta")
    for coarse in (False, True):
        groups = timm.models.group_parameters(model, model.group_matcher(coarse=coarse), reverse=True)
        assert max(groups.values()) == groups["fc.weight"]
        assert not [key for key, group in groups.items() if group == max(groups.values()) and "bam" in key]
    fine = timm.models.group_parameters(model, model.group_matcher(), reverse=True)
    assert fine["layer1.1.conv1.weight"] < fine["layer2.bam.channel_gate.fc0.weight"] <= fine["layer2.0.conv1.weight"]
    assert param_groups_layer_decay(model, layer_decay=0.9)
