# UPerNet on ADE20K over multipole attention in Swin's layout (arXiv 2507.02748), 8 processes with 2 pictures each. The
# paper states no segmentation, and nobody publishes weights: train some by mano-tiny_1024-300e_imagenet and give them
# with `--cfg-options model.backbone.pretrained=True model.backbone.pretrained_cfg_overlay.file=PATH`.
_base_ = [
    "../_base_/models/upernet.py",
    "../_base_/datasets/ade20k.py",
    "../_base_/schedules/segmentation_160k_adamw.py",
    "../_base_/segmentation_runtime_iterations.py",
]
model = dict(
    backbone=dict(
        model_name="va_mano_tiny",
        drop_path_rate=0.2,
    ),
)
train_dataloader = dict(batch_size=2)
