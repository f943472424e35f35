# Semantic FPN on ADE20K over DHVT-T with patches of 16 px (arXiv 2210.05958), 4 processes with 4 pictures each. The
# paper states no segmentation, and nobody publishes weights: train some by dhvt-tiny_256-300e_imagenet and give them
# with `--cfg-options model.backbone.pretrained=True model.backbone.pretrained_cfg_overlay.file=PATH`.
_base_ = [
    "../_base_/models/semantic_fpn.py",
    "../_base_/datasets/ade20k.py",
    "../_base_/schedules/segmentation_80k_adamw.py",
    "../_base_/segmentation_runtime_iterations.py",
]
model = dict(
    backbone=dict(
        model_name="va_dhvt_tiny_p16",
        drop_path_rate=0.1,
    ),
)
