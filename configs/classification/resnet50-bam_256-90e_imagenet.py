# ResNet-50 with BAM on ImageNet-1K by the recipe of the authors' released weights (arXiv 1807.06514). Published: top-1
# 76.86 %, top-5 93.42 % (README of the official repository).
_base_ = ["./resnet50-cbam_256-100e_imagenet.py"]
model = dict(backbone=dict(model_name="va_resnet50_bam"))
train_cfg = dict(max_epochs=90)
