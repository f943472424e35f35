# MobileNetV2 with ELA on ImageNet-1K by the defaults of the official repository (arXiv 2403.01123).
_base_ = ["./mobilenetv2-coord_256-200e_imagenet.py"]
model = dict(backbone=dict(model_name="va_mobilenetv2_100_ela_t"))
optim_wrapper = dict(optimizer=dict(lr=0.1, weight_decay=1e-4))
