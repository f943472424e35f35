# Faster R-CNN (arXiv 1506.01497) as for COCO: pyramid on strides 4 to 32 with one level more.
model = dict(
    type="Detector",
    backbone=dict(model_name="va_resnet50_cbam"),
    detector=dict(type="FasterRCNN", rpn_post_nms_top_n_train=1000),
    num_classes=80,
    frozen_stages=1,
    norm_eval=True,
)
