# Mask R-CNN 1x on COCO over multipole attention in Swin's layout (arXiv 2507.02748), 8 processes with 2 pictures each.
# The paper states no detection, and nobody publishes weights: train some by mano-tiny_1024-300e_imagenet and give them
# with `--cfg-options model.backbone.pretrained=True model.backbone.pretrained_cfg_overlay.file=PATH`.
_base_ = [
    "../_base_/models/mask_rcnn_fpn.py",
    "../_base_/datasets/coco_instance.py",
    "../_base_/schedules/detection_1x_adamw.py",
    "../_base_/detection_runtime.py",
]
model = dict(
    backbone=dict(
        model_name="va_mano_tiny",
        drop_path_rate=0.2,
    ),
    frozen_stages=0,
)
