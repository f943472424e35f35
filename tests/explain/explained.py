"""Small networks for the tests of the explain room, with weights in place of their start."""

import timm
import torch

import visionattn  # noqa: F401  (registers the va_* networks)
from visionattn.testing.fixtures import filled

# Narrow versions of timm's families: name -> arguments, side of the images.
TIMM = {
    "vit_tiny_patch16_224": ({"depth": 2, "img_size": 64}, 64),
    "vit_base_patch16_siglip_224": ({"depth": 2, "embed_dim": 48, "num_heads": 3, "img_size": 64}, 64),
    "eva02_tiny_patch14_224": ({"depth": 2, "img_size": 56}, 56),
    "beit_base_patch16_224": ({"depth": 2, "embed_dim": 48, "num_heads": 3, "img_size": 64}, 64),
    "cait_xxs24_224": ({"depth": 2, "img_size": 64}, 64),
    "xcit_nano_12_p16_224": ({"depth": 2}, 64),
    "swin_tiny_patch4_window7_224": (
        {"depths": (2, 2, 1), "embed_dim": 24, "num_heads": (2, 2, 4), "img_size": 96, "window_size": 6},
        96,
    ),
    "davit_tiny": ({"depths": (1, 1, 1, 1), "embed_dims": (24, 48, 72, 96), "num_heads": (1, 2, 3, 4)}, 64),
    "twins_svt_small": ({"depths": (2, 1, 1, 1)}, 64),
}
# More of timm's as they are.
MORE = (
    "deit3_small_patch16_224", "deit_tiny_distilled_patch16_224", "swinv2_tiny_window8_256", "levit_128s",
    "mvitv2_tiny", "pvt_v2_b0", "maxvit_rmlp_nano_rw_256", "coatnet_nano_rw_224", "crossvit_tiny_240",
    "edgenext_xx_small",
    "halonet26t", "botnet26t_256", "gcvit_xxtiny", "hiera_tiny_224", "visformer_tiny", "efficientformer_l1",
    "fastvit_sa12", "tnt_s_patch16_224", "volo_d1_224", "mobilevit_xxs", "efficientvit_m0", "repvit_m0_9",
    "convit_tiny", "vit_small_patch16_dinov3", "vit_relpos_small_patch16_224", "flexivit_small", "nextvit_small",
)  # fmt: skip
OURS = ("biformer", "boat", "davit", "halonet", "mano", "pvt", "softmax", "swin", "twins")


def fill(model):
    """The weights of the fixtures: at their start many networks have zeros that hide what is computed."""
    with torch.no_grad():
        entries = [*model.named_parameters(), *((k, v) for k, v in model.named_buffers() if "running" in k)]
        for key, value in entries:
            value.copy_(torch.from_numpy(filled(key, list(value.shape))))
    return model.eval()


def small(name):
    """A narrow network of timm's or of ours, and images for it."""
    arguments, side = TIMM.get(name, ({}, 64))
    torch.manual_seed(0)
    model = fill(timm.create_model(name, num_classes=10, **arguments))
    return model, torch.randn(2, 3, side, side)
