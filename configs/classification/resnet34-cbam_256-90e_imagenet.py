_base_ = ["./resnet50-cbam_256-90e_imagenet.py"]
model = dict(backbone=dict(model_name="va_resnet34_cbam"))
