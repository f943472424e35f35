# As the tiny one with more stochastic depth.
_base_ = ["./boat-swin-tiny_1024-300e_imagenet.py"]
model = dict(backbone=dict(model_name="va_boat_swin_small", drop_path_rate=0.3))
