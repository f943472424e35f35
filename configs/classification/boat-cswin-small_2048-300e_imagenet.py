# As the tiny one with more stochastic depth.
_base_ = ["./boat-cswin-tiny_2048-300e_imagenet.py"]
model = dict(backbone=dict(model_name="va_boat_cswin_small", drop_path_rate=0.4))
