# UPerNet on ADE20K over BiFormer-S (arXiv 2303.08810) with 8 regions a side, from the authors' ImageNet weights, 8
# processes with 2 pictures each. Published: mIoU 49.8. `visionattn download va_biformer_small.in1k` fetches the weights
# or says where they are.
_base_ = [
    "../_base_/models/upernet.py",
    "../_base_/datasets/ade20k.py",
    "../_base_/schedules/segmentation_160k_adamw.py",
    "../_base_/segmentation_runtime_iterations.py",
]
model = dict(
    backbone=dict(
        model_name="va_biformer_small.in1k",
        pretrained=True,
        n_win=8,
        drop_path_rate=0.3,
    ),
)
train_dataloader = dict(batch_size=2)
