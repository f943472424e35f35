# Semantic FPN on ADE20K over RAVLT-T (arXiv 2411.07635), from the authors' ImageNet weights, 4 processes with 4
# pictures each. Published: mIoU 47.9. `visionattn download va_ravlt_tiny.in1k` fetches the weights or says
# where they are.
_base_ = [
    "../_base_/models/semantic_fpn.py",
    "../_base_/datasets/ade20k.py",
    "../_base_/schedules/segmentation_80k_adamw.py",
    "../_base_/segmentation_runtime_iterations.py",
]
model = dict(
    backbone=dict(
        model_name="va_ravlt_tiny.in1k",
        pretrained=True,
        drop_path_rate=0.1,
    ),
)
