# The recipe for the larger FLatten-PVTs on ImageNet-1K, as the tiny one's with more stochastic depth, clipped.
_base_ = ["./flatten-pvt-tiny_1024-300e_imagenet.py"]
model = dict(backbone=dict(model_name="va_flatten_pvt_medium", drop_path_rate=0.3))
optim_wrapper = dict(clip_grad=dict(_delete_=True, max_norm=1.0))
variants = {"va_flatten_pvt_large": {"drop_path_rate": 0.3}, "va_flatten_pvtv2_b[34]": {"drop_path_rate": 0.3}}
