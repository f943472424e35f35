# UPerNet on ADE20K over a ResNet-50 with CBAM, from the author's ImageNet weights: 4 processes with 4 pictures each.
_base_ = [
    "../_base_/models/upernet.py",
    "../_base_/datasets/ade20k.py",
    "../_base_/schedules/segmentation_80k.py",
    "../_base_/segmentation_runtime_iterations.py",
]
model = dict(
    backbone=dict(
        model_name="va_resnet50_cbam",
        pretrained=True,
        pretrained_cfg_overlay=dict(file="weights/RESNET50_CBAM_new_name_wrap.pth"),
    ),
)
