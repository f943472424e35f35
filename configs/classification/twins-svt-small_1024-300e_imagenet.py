# The recipe of Twins' authors on ImageNet-1K (arXiv 2104.13840), which is DeiT's. Published top-1 accuracy: SVT small
# 81.7 %, base 83.2 %, large 83.7 %; PCPVT small 81.2 %, base 82.7 %, large 83.1 %. The authors saw NaN with the large
# SVT under mixed precision. There is no official code of FLatten-DeiT, and the recipe of the LKCA paper is not known.
_base_ = [
    "../_base_/models/transformer.py",
    "../_base_/datasets/imagenet_randaugment.py",
    "../_base_/schedules/adamw_300e.py",
    "../_base_/default_runtime.py",
]
model = dict(backbone=dict(model_name="va_twins_svt_small", drop_path_rate=0.2))
train_dataloader = dict(batch_size=128)
default_hooks = dict(logger=dict(interval=100))
variants = {
    "va_twins_pcpvt_small": {"drop_path_rate": 0.2},
    "va_twins_*_base": {"drop_path_rate": 0.3},
    "va_twins_*_large": {"drop_path_rate": 0.5},
    "va_flatten_deit_*": {"drop_path_rate": 0.1},
    "va_lkca_vit_*": {"drop_path_rate": 0.1},
}
