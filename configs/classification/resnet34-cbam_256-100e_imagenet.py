# As ResNet-50 (arXiv 1807.06521).
_base_ = ["./resnet50-cbam_256-100e_imagenet.py"]
model = dict(backbone=dict(model_name="va_resnet34_cbam"))
