# The recipe of DaViT's authors on ImageNet-1K (arXiv 2204.03645), DeiT's with tighter clipping. Published top-1
# accuracy: tiny 82.8 %, small 84.2 %, base 84.6 %.
_base_ = ["./twins-svt-small_1024-300e_imagenet.py"]
model = dict(backbone=dict(model_name="va_davit_tiny", drop_path_rate=0.1))
optim_wrapper = dict(clip_grad=dict(max_norm=1.0))
variants = {"va_davit_small": {"drop_path_rate": 0.2}, "va_davit_base": {"drop_path_rate": 0.4}}
