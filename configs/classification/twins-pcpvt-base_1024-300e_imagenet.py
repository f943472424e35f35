# Published: top1 82.7 %.
_base_ = ["./twins-svt-small_1024-300e_imagenet.py"]
model = dict(backbone=dict(model_name="va_twins_pcpvt_base", drop_path_rate=0.3))
