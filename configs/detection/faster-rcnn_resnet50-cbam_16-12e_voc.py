# Faster R-CNN on Pascal VOC 07+12 over a ResNet-50 with CBAM, from the author's ImageNet weights, 4 processes with 4
# pictures each. `visionattn download va_resnet50_cbam.in1k` fetches the weights or says where they are.
_base_ = [
    "../_base_/models/faster_rcnn_fpn.py",
    "../_base_/datasets/voc_detection.py",
    "../_base_/schedules/detection_1x.py",
    "../_base_/detection_runtime.py",
]
model = dict(
    backbone=dict(
        model_name="va_resnet50_cbam.in1k",
        pretrained=True,
    ),
    num_classes=20,
)
