# The authors' recipe (arXiv 2104.13840), which is DeiT's. Published: top1 81.7 %.
_base_ = [
    "../_base_/models/transformer.py",
    "../_base_/datasets/imagenet_randaugment.py",
    "../_base_/schedules/adamw_300e.py",
    "../_base_/default_runtime.py",
]
model = dict(backbone=dict(model_name="va_twins_svt_small", drop_path_rate=0.2))
train_dataloader = dict(batch_size=128)
default_hooks = dict(logger=dict(interval=100))
