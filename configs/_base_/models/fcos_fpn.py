# FCOS (arXiv 1904.01355) as for COCO: pyramid on strides 8 to 32 with two levels more, no anchors.
model = dict(
    type="Detector",
    backbone=dict(model_name="va_resnet50_cbam"),
    detector=dict(type="FCOS"),
    num_classes=80,
    frozen_stages=1,
    norm_eval=True,
)
