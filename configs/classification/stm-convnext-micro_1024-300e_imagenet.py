# Published: top1 75.1 %.
_base_ = ["./stm-swin-tiny_1024-300e_imagenet.py"]
model = dict(backbone=dict(model_name="va_stm_convnext_micro", drop_path_rate=0.0))
