# RetinaNet 1x on COCO over BiFormer-S (arXiv 2303.08810) with 16 regions a side, from the authors' ImageNet weights, 8
# processes with 2 pictures each. Published: AP 45.9. `visionattn download va_biformer_small.in1k` fetches the weights
# or says where they are.
_base_ = [
    "../_base_/models/retinanet_fpn.py",
    "../_base_/datasets/coco_detection.py",
    "../_base_/schedules/detection_1x_adamw.py",
    "../_base_/detection_runtime.py",
]
model = dict(
    backbone=dict(
        model_name="va_biformer_small.in1k",
        pretrained=True,
        n_win=16,
        drop_path_rate=0.2,
    ),
    frozen_stages=0,
    norm_eval=False,
)
