# The authors' recipe (arXiv 2204.03645): DeiT's with tighter clipping. Published: top1 82.8 %.
_base_ = ["./twins-svt-small_1024-300e_imagenet.py"]
model = dict(backbone=dict(model_name="va_davit_tiny", drop_path_rate=0.1))
optim_wrapper = dict(clip_grad=dict(max_norm=1.0))
