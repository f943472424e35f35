# Mask R-CNN 1x on COCO over MoH-ViT-S with 80 % of its heads (arXiv 2410.11842), from the authors' ImageNet weights, 8
# processes with 2 pictures each; the loss of balance is added by itself. The paper states no detection.
# `visionattn download va_moh_vit_small_80.in1k` fetches the weights or says where they are.
_base_ = [
    "../_base_/models/mask_rcnn_fpn.py",
    "../_base_/datasets/coco_instance.py",
    "../_base_/schedules/detection_1x_adamw.py",
    "../_base_/detection_runtime.py",
]
model = dict(
    backbone=dict(
        model_name="va_moh_vit_small_80.in1k",
        pretrained=True,
        drop_path_rate=0.3,
    ),
    frozen_stages=0,
)
