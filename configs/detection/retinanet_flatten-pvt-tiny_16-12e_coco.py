# RetinaNet 1x on COCO over FLatten-PVT-T (arXiv 2308.00442), from the authors' ImageNet weights, 8 processes with 2
# pictures each. `visionattn download va_flatten_pvt_tiny.in1k` fetches the weights or says where they are.
_base_ = [
    "../_base_/models/retinanet_fpn.py",
    "../_base_/datasets/coco_detection.py",
    "../_base_/schedules/detection_1x_adamw.py",
    "../_base_/detection_runtime.py",
]
model = dict(
    backbone=dict(
        model_name="va_flatten_pvt_tiny.in1k",
        pretrained=True,
        drop_path_rate=0.2,
    ),
    frozen_stages=0,
)
