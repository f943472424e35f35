# UPerNet on ADE20K over va_davit_tiny, from timm's ImageNet weights: 8 processes with 2 pictures each.
_base_ = [
    "../_base_/models/upernet.py",
    "../_base_/datasets/ade20k.py",
    "../_base_/schedules/segmentation_160k_adamw.py",
    "../_base_/segmentation_runtime_iterations.py",
]
model = dict(backbone=dict(model_name="va_davit_tiny", pretrained=True, drop_path_rate=0.3))
