# RetinaNet 1x on COCO over DaViT-T (arXiv 2204.03645), from the authors' ImageNet weights, 8 processes with 2 pictures
# each. Published: AP 44.0. `visionattn download va_davit_tiny.msft_in1k` fetches the weights or says where they are.
_base_ = [
    "../_base_/models/retinanet_fpn.py",
    "../_base_/datasets/coco_detection.py",
    "../_base_/schedules/detection_1x_adamw.py",
    "../_base_/detection_runtime.py",
]
model = dict(
    backbone=dict(
        model_name="va_davit_tiny.msft_in1k",
        pretrained=True,
        drop_path_rate=0.1,
    ),
    frozen_stages=0,
    norm_eval=False,
)
