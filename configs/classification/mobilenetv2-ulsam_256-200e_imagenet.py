# ULSAM in place of layers 14 and 17 (arXiv 2006.15102). Its training script is not published: the recipe is ours.
_base_ = ["./mobilenetv2-coord_256-200e_imagenet.py"]
model = dict(backbone=dict(model_name="va_mobilenetv2_100_ulsam"))
