# Swin's recipe. Published: top1 83.8 %.
_base_ = ["./boat-swin-tiny_1024-300e_imagenet.py"]
model = dict(backbone=dict(model_name="va_flatten_swin_base", drop_path_rate=0.5))
