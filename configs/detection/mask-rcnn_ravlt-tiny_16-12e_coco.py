# Mask R-CNN 1x on COCO over RAVLT-T (arXiv 2411.07635), from the authors' ImageNet weights, 8 processes with 2 pictures
# each. Published: box AP 47.3, mask AP 42.7. `visionattn download va_ravlt_tiny.in1k` fetches the weights or says where
# they are.
_base_ = [
    "../_base_/models/mask_rcnn_fpn.py",
    "../_base_/datasets/coco_instance.py",
    "../_base_/schedules/detection_1x_adamw.py",
    "../_base_/detection_runtime.py",
]
model = dict(
    backbone=dict(
        model_name="va_ravlt_tiny.in1k",
        pretrained=True,
        drop_path_rate=0.1,
    ),
    frozen_stages=0,
)
