# The authors' recipe (arXiv 2201.13027), which is Swin's: 20 epochs of warm-up.
_base_ = ["./twins-svt-small_1024-300e_imagenet.py"]
model = dict(backbone=dict(model_name="va_boat_swin_tiny", drop_path_rate=0.2))
param_scheduler = [
    dict(type="LinearLR", start_factor=5e-4, end=20, convert_to_iter_based=True),
    dict(type="CosineAnnealingLR", eta_min=5e-6, begin=20, convert_to_iter_based=True),
]
