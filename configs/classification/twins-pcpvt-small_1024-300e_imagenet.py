# Published: top1 81.2 %.
_base_ = ["./twins-svt-small_1024-300e_imagenet.py"]
model = dict(backbone=dict(model_name="va_twins_pcpvt_small", drop_path_rate=0.2))
