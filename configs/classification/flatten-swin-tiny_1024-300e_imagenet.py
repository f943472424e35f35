# Swin's recipe. Published: top1 82.1 %.
_base_ = ["./boat-swin-tiny_1024-300e_imagenet.py"]
model = dict(backbone=dict(model_name="va_flatten_swin_tiny", drop_path_rate=0.2))
