# Published: top1 75.8 %.
_base_ = ["./stm-swin-tiny_1024-300e_imagenet.py"]
model = dict(backbone=dict(model_name="va_stm_halonet_micro", drop_path_rate=0.0))
