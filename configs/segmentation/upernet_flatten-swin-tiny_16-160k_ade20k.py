# UPerNet on ADE20K over FLatten-Swin-T (arXiv 2308.00442), from the authors' ImageNet weights, 8 processes with 2
# pictures each. `visionattn download va_flatten_swin_tiny.in1k` fetches the weights or says where they are.
_base_ = [
    "../_base_/models/upernet.py",
    "../_base_/datasets/ade20k.py",
    "../_base_/schedules/segmentation_160k_adamw.py",
    "../_base_/segmentation_runtime_iterations.py",
]
model = dict(
    backbone=dict(
        model_name="va_flatten_swin_tiny.in1k",
        pretrained=True,
        drop_path_rate=0.2,
    ),
)
train_dataloader = dict(batch_size=2)
