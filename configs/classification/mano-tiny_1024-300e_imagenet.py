# Multipole attention (arXiv 2507.02748) in Swin's layout on ImageNet-1K with Swin's recipe. The paper fine-tunes on
# small sets and states no accuracy here.
_base_ = ["./twins-svt-small_1024-300e_imagenet.py"]
model = dict(backbone=dict(model_name="va_mano_tiny", drop_path_rate=0.2))
variants = {"va_mano_small": {"drop_path_rate": 0.3}, "va_mano_base": {"drop_path_rate": 0.5}}
