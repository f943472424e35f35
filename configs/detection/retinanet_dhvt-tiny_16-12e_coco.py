# RetinaNet 1x on COCO over DHVT-T with patches of 16 px (arXiv 2210.05958), 8 processes with 2 pictures each. The paper
# states no detection, and nobody publishes weights: train some by dhvt-tiny_256-300e_imagenet and give them with
# `--cfg-options model.backbone.pretrained=True model.backbone.pretrained_cfg_overlay.file=PATH`.
_base_ = [
    "../_base_/models/retinanet_fpn.py",
    "../_base_/datasets/coco_detection.py",
    "../_base_/schedules/detection_1x_adamw.py",
    "../_base_/detection_runtime.py",
]
model = dict(
    backbone=dict(
        model_name="va_dhvt_tiny_p16",
        drop_path_rate=0.1,
    ),
    frozen_stages=0,
    norm_eval=False,
)
