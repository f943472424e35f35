"""Every family of networks in every detector and decoder: one training step and one prediction at an odd size."""

import pytest
import timm
import torch
from dense import detection_batch, segmentation_batch
from mmengine.config import Config
from mmengine.registry import MODELS

import visionattn  # noqa: F401
from visionattn.tasks import Detector, Segmentor
from visionattn.utils.resources import config_dir

_NARROW = {"dims": (16, 32, 64, 128), "depths": (2, 1, 1, 1), "num_heads": (2, 2, 4, 8)}
# Module of a family -> its smallest network, made narrow where it has no small one.
FAMILIES = {
    "va_balanced": {"model_name": "va_balanced12_bmta"},
    "va_bam_resnet": {"model_name": "va_resnet10n_bam"},
    "va_biformer": {"model_name": "va_biformer_tiny", **_NARROW},
    "va_boat": {"model_name": "va_boat_swin_tiny", **_NARROW},
    "va_davit": {"model_name": "va_davit_tiny", **_NARROW},
    "va_deconstructed": {"model_name": "va_deconstructed_relu_nano"},
    "va_dhvt": {"model_name": "va_dhvt_small_cifar_p4", "dim": 32, "depth": 4, "num_heads": 2},
    "va_flatten": {"model_name": "va_flatten_swin_tiny", **_NARROW},
    "va_lkca": {"model_name": "va_lkca_vit_mini"},
    "va_mano": {"model_name": "va_mano_tiny", **_NARROW},
    "va_mobilenet": {"model_name": "va_mobilenetv2_050_coord"},
    "va_pkcam_resnet": {"model_name": "va_resnet18_pkcam"},
    "va_moh_vit": {
        "model_name": "va_moh_vit_tiny_75",
        **_NARROW,
        "shared_heads": (1, 1, 1, 2),
        "routed_heads": (1, 1, 2, 4),
    },
    "va_ravlt": {"model_name": "va_ravlt_tiny", **_NARROW},
    "va_resnet": {"model_name": "va_resnet10n_cbam"},
    "va_stm": {"model_name": "va_stm_pvt_nano"},
    "va_vit": {"model_name": "va_vit_softmax_nano"},
    "va_twins": {"model_name": "va_twins_svt_small", **_NARROW},
}
# Few proposals: what is tested is whether things fit together.
FEW = {"rpn_pre_nms_top_n_train": 50, "rpn_post_nms_top_n_train": 50, "box_batch_size_per_image": 8}
FEW |= {"rpn_pre_nms_top_n_test": 50, "rpn_post_nms_top_n_test": 10, "box_detections_per_img": 5}
DETECTORS = {"RetinaNet": {}, "FCOS": {}, "FasterRCNN": FEW, "MaskRCNN": FEW}
DECODERS = {
    "UPerNet": {"decoder_channels": 16},
    "FPN": {"decoder_pyramid_channels": 16, "decoder_segmentation_channels": 32},
    "Unet": {},
    "DeepLabV3Plus": {"decoder_channels": 16},
    "Segformer": {"decoder_segmentation_channels": 16},
}
SIZES = [(64, 51), (45, 64)]


def each(heads, quick):
    """All pairs of a family and a head; one family with all heads and one head with all families by default."""
    cases = []
    for family, backbone in FAMILIES.items():
        for head in heads:
            slow = family != "va_resnet" and head != quick
            cases.append(pytest.param(backbone, head, marks=[pytest.mark.slow] if slow else [], id=f"{family}-{head}"))
    return cases


def test_every_family_is_here():
    modules = {timm.models.model_entrypoint(name).__module__ for name in timm.list_models("va_*")}
    assert {module.rpartition(".")[2] for module in modules} == set(FAMILIES)


def step(model, inputs, samples):
    losses = model.train()(inputs, samples, "loss")
    assert all("loss" in name for name in losses)
    total = sum(losses.values())
    total.backward()
    assert total.isfinite()
    idle = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert not idle, f"no gradient reaches {idle}"


@pytest.mark.parametrize(("backbone", "head"), each(DETECTORS, "FCOS"))
def test_detector(backbone, head):
    torch.manual_seed(0)
    model = Detector(backbone, {"type": head, **DETECTORS[head]}, 5, pyramid_channels=64)
    inputs, samples = detection_batch(SIZES, [2, 1])
    step(model, inputs, samples)
    with torch.inference_mode():
        results = model.eval()(inputs[:1, :, :, :51], [{"size": (64, 51), "original": {"size": (129, 101)}}], "predict")
    preds = results[0]["preds"]
    assert len(preds["boxes"]) == len(preds["scores"]) == len(preds["labels"])
    assert ("masks" in preds) == (head == "MaskRCNN")


@pytest.mark.parametrize(("backbone", "head"), each(DECODERS, "FPN"))
def test_segmentor(backbone, head):
    torch.manual_seed(0)
    model = Segmentor(backbone, {"type": head, **DECODERS[head]}, 5, auxiliary={})
    inputs, samples = segmentation_batch(SIZES)
    step(model, inputs, samples)
    with torch.inference_mode():
        sample = {"size": (64, 51), "original_mask": torch.zeros(129, 101, dtype=torch.uint8)}
        (result,) = model.eval()(inputs[:1, :, :, :51], [sample], "predict")
    assert result["preds"].shape == (129, 101) and result["preds"].max() < 5


@pytest.mark.filterwarnings("ignore:.*meta")
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("task", ["detection", "segmentation"])
def test_one_line_changes_the_backbone_of_a_quickstart(family, task):
    """`--cfg-options model.backbone.model_name=...`, on the meta device: what is tested is what fits together."""
    config = Config.fromfile(config_dir() / task / f"quickstart-{task}.py")
    config.merge_from_dict({f"model.backbone.{key}": value for key, value in FAMILIES[family].items()})
    with torch.device("meta"):
        model = MODELS.build(config.model).eval()
        outputs = model(torch.empty(1, 3, 64, 96))
    strides = model.backbone.strides
    assert len(strides) == {"detection": 2, "segmentation": 3}[task] and max(strides) <= 16
    if task == "segmentation":
        assert outputs.shape == (1, 11, 64, 96)
    else:
        assert [64 // m.shape[-2] for m in outputs[:2]] == strides
