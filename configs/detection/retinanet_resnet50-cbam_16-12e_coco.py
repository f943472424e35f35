# RetinaNet 1x on COCO over a ResNet-50 with CBAM, from the author's ImageNet weights, 8 processes with 2 pictures each.
# `visionattn download va_resnet50_cbam.in1k` fetches the weights or says where they are.
_base_ = [
    "../_base_/models/retinanet_fpn.py",
    "../_base_/datasets/coco_detection.py",
    "../_base_/schedules/detection_1x.py",
    "../_base_/detection_runtime.py",
]
model = dict(
    backbone=dict(
        model_name="va_resnet50_cbam.in1k",
        pretrained=True,
    ),
)
optim_wrapper = dict(optimizer=dict(lr=0.01))
