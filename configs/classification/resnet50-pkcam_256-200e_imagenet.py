# ResNet-50 with PKCAM on ImageNet-1K by the defaults of the official training script (arXiv 2211.07521).
_base_ = ["./resnet50-cbam_256-100e_imagenet.py"]
model = dict(backbone=dict(model_name="va_resnet50_pkcam"))
train_cfg = dict(max_epochs=200)
