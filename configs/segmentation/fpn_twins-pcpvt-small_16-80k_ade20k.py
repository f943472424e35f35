# Semantic FPN on ADE20K over va_twins_pcpvt_small, from timm's ImageNet weights: 4 processes with 4 pictures each.
_base_ = [
    "../_base_/models/semantic_fpn.py",
    "../_base_/datasets/ade20k.py",
    "../_base_/schedules/segmentation_80k_adamw.py",
    "../_base_/segmentation_runtime_iterations.py",
]
model = dict(backbone=dict(model_name="va_twins_pcpvt_small", pretrained=True, drop_path_rate=0.2))
