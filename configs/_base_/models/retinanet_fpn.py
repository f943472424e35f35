# RetinaNet (arXiv 1708.02002) as for COCO: pyramid on strides 8 to 32 with two levels more, nine anchors a place.
model = dict(
    type="Detector",
    backbone=dict(model_name="va_resnet50_cbam"),
    detector=dict(type="RetinaNet", detections_per_img=100),
    num_classes=80,
    frozen_stages=1,
    norm_eval=True,
)
