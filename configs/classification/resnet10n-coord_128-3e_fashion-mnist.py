_base_ = ["./resnet10n_128-3e_fashion-mnist.py"]
model = dict(backbone=dict(model_name="va_resnet10n_coord"))
