# Published: top1 84.6 %.
_base_ = ["./davit-tiny_1024-300e_imagenet.py"]
model = dict(backbone=dict(model_name="va_davit_base", drop_path_rate=0.4))
