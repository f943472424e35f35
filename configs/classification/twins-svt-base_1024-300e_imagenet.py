# Published: top1 83.2 %.
_base_ = ["./twins-svt-small_1024-300e_imagenet.py"]
model = dict(backbone=dict(model_name="va_twins_svt_base", drop_path_rate=0.3))
