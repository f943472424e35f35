# UPerNet on ADE20K over DaViT-T (arXiv 2204.03645), from the authors' ImageNet weights, 8 processes with 2 pictures
# each. Published: mIoU 46.3. `visionattn download va_davit_tiny.msft_in1k` fetches the weights or says where they are.
_base_ = [
    "../_base_/models/upernet.py",
    "../_base_/datasets/ade20k.py",
    "../_base_/schedules/segmentation_160k_adamw.py",
    "../_base_/segmentation_runtime_iterations.py",
]
model = dict(
    backbone=dict(
        model_name="va_davit_tiny.msft_in1k",
        pretrained=True,
        drop_path_rate=0.3,
    ),
)
train_dataloader = dict(batch_size=2)
