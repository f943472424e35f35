# ULSAM in place of layer 12 (arXiv 2006.15102). Its training script is not published: the recipe is ours.
_base_ = ["./mobilenetv2-coord_256-200e_imagenet.py"]
model = dict(backbone=dict(model_name="va_mobilenetv1_100_ulsam"))
