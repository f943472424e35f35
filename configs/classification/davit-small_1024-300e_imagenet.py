# Published: top1 84.2 %.
_base_ = ["./davit-tiny_1024-300e_imagenet.py"]
model = dict(backbone=dict(model_name="va_davit_small", drop_path_rate=0.2))
