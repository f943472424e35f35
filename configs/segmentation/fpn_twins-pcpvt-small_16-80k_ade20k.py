# Semantic FPN on ADE20K over Twins-PCPVT-S (arXiv 2104.13840), from the authors' ImageNet weights, 4 processes with 4
# pictures each. Published: mIoU 44.3. `visionattn download va_twins_pcpvt_small.in1k` fetches the weights or says where
# they are.
_base_ = [
    "../_base_/models/semantic_fpn.py",
    "../_base_/datasets/ade20k.py",
    "../_base_/schedules/segmentation_80k_adamw.py",
    "../_base_/segmentation_runtime_iterations.py",
]
model = dict(
    backbone=dict(
        model_name="va_twins_pcpvt_small.in1k",
        pretrained=True,
        drop_path_rate=0.2,
    ),
)
