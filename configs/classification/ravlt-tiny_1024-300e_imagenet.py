# The recipe of RAVLT's authors on ImageNet-1K (arXiv 2411.07635), which is DeiT's. Published top-1 accuracy: tiny
# 82.8 %, small 84.4 %, base 85.5 %, large 85.8 %.
_base_ = ["./twins-svt-small_1024-300e_imagenet.py"]
model = dict(backbone=dict(model_name="va_ravlt_tiny", drop_path_rate=0.1))
variants = {
    "va_ravlt_small": {"drop_path_rate": 0.15},
    "va_ravlt_base": {"drop_path_rate": 0.4},
    "va_ravlt_large": {"drop_path_rate": 0.55},
}
