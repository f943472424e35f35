# As CBAM (arXiv 2010.03045).
_base_ = ["./resnet50-cbam_256-100e_imagenet.py"]
model = dict(backbone=dict(model_name="va_resnet50_triplet"))
