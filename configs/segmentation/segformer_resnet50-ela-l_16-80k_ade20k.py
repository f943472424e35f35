# SegFormer's decoder on ADE20K over timm's ResNet-50 with ELA put into its blocks, 4 processes with 4 pictures each.
_base_ = [
    "../_base_/models/segformer.py",
    "../_base_/datasets/ade20k.py",
    "../_base_/schedules/segmentation_80k.py",
    "../_base_/segmentation_runtime_iterations.py",
]
model = dict(
    backbone=dict(model_name="resnet50.tv_in1k", pretrained=True),
    attach=dict(plugin="ela_l"),
)
