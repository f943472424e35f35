# The common recipe of STM-Evaluation (arXiv 2211.05781) for all token mixers on ImageNet-1K. Published top-1 accuracy:
# Swin 82.3 % (micro 74.4 %), ConvNeXt 82.2 % (75.1 %), HaloNet 83.0 % (75.8 %), PVT 82.1 % (72.8 %); the other mixers
# are not published in it.
_base_ = ["./twins-svt-small_1024-300e_imagenet.py"]
model = dict(backbone=dict(model_name="va_stm_swin_tiny", drop_path_rate=0.2))
variants = {
    "va_stm_*_micro": {"drop_path_rate": 0.0},
    "va_stm_convnext_tiny": {"drop_path_rate": 0.1},
    "va_stm_pvt_tiny": {"drop_path_rate": 0.1},
    "va_stm_*_tiny": {"drop_path_rate": 0.2},
}
