# As the tiny one with more stochastic depth, clipped.
_base_ = ["./flatten-pvt-tiny_1024-300e_imagenet.py"]
model = dict(backbone=dict(model_name="va_flatten_pvt_large", drop_path_rate=0.3))
optim_wrapper = dict(clip_grad=dict(_delete_=True, max_norm=1.0))
