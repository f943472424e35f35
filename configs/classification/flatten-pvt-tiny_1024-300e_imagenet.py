# The authors' recipe (arXiv 2308.00442), which is PVT's: DeiT's without clipping. Published: top1 77.8 %.
_base_ = ["./twins-svt-small_1024-300e_imagenet.py"]
model = dict(backbone=dict(model_name="va_flatten_pvt_tiny", drop_path_rate=0.1))
optim_wrapper = dict(clip_grad=None)
