# UPerNet on ADE20K over MoH-ViT-S with 80 % of its heads (arXiv 2410.11842), from the authors' ImageNet weights, 8
# processes with 2 pictures each; the loss of balance is added by itself. The paper states no segmentation.
# `visionattn download va_moh_vit_small_80.in1k` fetches the weights or says where they are.
_base_ = [
    "../_base_/models/upernet.py",
    "../_base_/datasets/ade20k.py",
    "../_base_/schedules/segmentation_160k_adamw.py",
    "../_base_/segmentation_runtime_iterations.py",
]
model = dict(
    backbone=dict(
        model_name="va_moh_vit_small_80.in1k",
        pretrained=True,
        drop_path_rate=0.3,
    ),
)
train_dataloader = dict(batch_size=2)
