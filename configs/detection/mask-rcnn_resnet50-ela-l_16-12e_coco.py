# Mask R-CNN 1x on COCO over timm's ImageNet weights of a ResNet-50, with ELA put into its blocks (arXiv 2403.01123,
# which names no weights), 8 processes with 2 pictures each. The blocks start as an identity.
_base_ = [
    "../_base_/models/mask_rcnn_fpn.py",
    "../_base_/datasets/coco_instance.py",
    "../_base_/schedules/detection_1x.py",
    "../_base_/detection_runtime.py",
]
model = dict(
    backbone=dict(model_name="resnet50.tv_in1k", pretrained=True),
    attach=dict(plugin="ela_l"),
    frozen_stages=0,
)
