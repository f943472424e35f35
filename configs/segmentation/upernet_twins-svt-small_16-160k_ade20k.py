# UPerNet on ADE20K over Twins-SVT-S (arXiv 2104.13840), from the authors' ImageNet weights, 8 processes with 2 pictures
# each. Published: mIoU 46.2. `visionattn download va_twins_svt_small.in1k` fetches the weights or says where they are.
_base_ = [
    "../_base_/models/upernet.py",
    "../_base_/datasets/ade20k.py",
    "../_base_/schedules/segmentation_160k_adamw.py",
    "../_base_/segmentation_runtime_iterations.py",
]
model = dict(
    backbone=dict(
        model_name="va_twins_svt_small.in1k",
        pretrained=True,
        drop_path_rate=0.2,
    ),
)
train_dataloader = dict(batch_size=2)
