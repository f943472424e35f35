# The common recipe of STM-Evaluation (arXiv 2211.05781) for all mechanisms. Published: top1 82.3 %.
_base_ = ["./twins-svt-small_1024-300e_imagenet.py"]
model = dict(backbone=dict(model_name="va_stm_swin_tiny", drop_path_rate=0.2))
