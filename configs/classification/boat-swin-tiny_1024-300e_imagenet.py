# The recipe of BOAT-Swin's authors on ImageNet-1K (arXiv 2201.13027), Swin's with 20 epochs of warm-up, for
# FLatten-Swin too (arXiv 2308.00442). Published top-1 accuracy of FLatten-Swin: tiny 82.1 %, small 83.5 %, base 83.8 %.
_base_ = ["./twins-svt-small_1024-300e_imagenet.py"]
model = dict(backbone=dict(model_name="va_boat_swin_tiny", drop_path_rate=0.2))
param_scheduler = [
    dict(type="LinearLR", start_factor=5e-4, end=20, convert_to_iter_based=True),
    dict(type="CosineAnnealingLR", eta_min=5e-6, begin=20, convert_to_iter_based=True),
]
variants = {
    "va_flatten_swin_tiny": {"drop_path_rate": 0.2},
    "va_*_swin_small": {"drop_path_rate": 0.3},
    "va_*_swin_base": {"drop_path_rate": 0.5},
}
