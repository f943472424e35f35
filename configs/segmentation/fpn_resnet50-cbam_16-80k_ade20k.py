# Semantic FPN on ADE20K over a ResNet-50 with CBAM, from the author's ImageNet weights, 4 processes with 4 pictures
# each. `visionattn download va_resnet50_cbam.in1k` fetches the weights or says where they are.
_base_ = [
    "../_base_/models/semantic_fpn.py",
    "../_base_/datasets/ade20k.py",
    "../_base_/schedules/segmentation_80k.py",
    "../_base_/segmentation_runtime_iterations.py",
]
model = dict(
    backbone=dict(
        model_name="va_resnet50_cbam.in1k",
        pretrained=True,
    ),
)
