# The recipe of FLatten-PVT's authors on ImageNet-1K (arXiv 2308.00442), which is PVT's: DeiT's without clipping.
# Published top-1 accuracy: PVT tiny 77.8 %, PVTv2-b0 71.1 %.
_base_ = ["./twins-svt-small_1024-300e_imagenet.py"]
model = dict(backbone=dict(model_name="va_flatten_pvt_tiny", drop_path_rate=0.1))
optim_wrapper = dict(clip_grad=None)
variants = {"va_flatten_pvt_small": {"drop_path_rate": 0.1}, "va_flatten_pvtv2_b[012]": {"drop_path_rate": 0.1}}
