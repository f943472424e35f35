# The same network and recipe without attention.
_base_ = ["./resnet10n-cbam_128-3e_fashion-mnist.py"]
model = dict(backbone=dict(model_name="va_resnet10n"))
