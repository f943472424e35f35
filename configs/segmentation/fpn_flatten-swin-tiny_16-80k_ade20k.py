# Semantic FPN on ADE20K over FLatten-Swin-T (arXiv 2308.00442), from the authors' ImageNet weights, 4 processes with 4
# pictures each. `visionattn download va_flatten_swin_tiny.in1k` fetches the weights or says where they are.
_base_ = [
    "../_base_/models/semantic_fpn.py",
    "../_base_/datasets/ade20k.py",
    "../_base_/schedules/segmentation_80k_adamw.py",
    "../_base_/segmentation_runtime_iterations.py",
]
model = dict(
    backbone=dict(
        model_name="va_flatten_swin_tiny.in1k",
        pretrained=True,
        drop_path_rate=0.2,
    ),
)
