# Mask R-CNN 1x on COCO over Twins-SVT-S (arXiv 2104.13840), from the authors' ImageNet weights, 8 processes with 2
# pictures each. Published: box AP 43.4, mask AP 40.3. `visionattn download va_twins_svt_small.in1k` fetches the weights
# or says where they are.
_base_ = [
    "../_base_/models/mask_rcnn_fpn.py",
    "../_base_/datasets/coco_instance.py",
    "../_base_/schedules/detection_1x_adamw.py",
    "../_base_/detection_runtime.py",
]
model = dict(
    backbone=dict(
        model_name="va_twins_svt_small.in1k",
        pretrained=True,
        drop_path_rate=0.2,
    ),
    frozen_stages=0,
    norm_eval=False,
)
optim_wrapper = dict(optimizer=dict(lr=2e-4, weight_decay=1e-4))
