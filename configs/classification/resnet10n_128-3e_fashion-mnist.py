# A narrow network on Fashion-MNIST without attention: less than two minutes on a core. The recipe of the bake-off; the
# configs that inherit from this one change the network's name only.
_base_ = [
    "../_base_/models/small.py",
    "../_base_/datasets/fashion_mnist.py",
    "../_base_/schedules/adamw_warm200.py",
    "../_base_/default_runtime.py",
]
model = dict(backbone=dict(model_name="va_resnet10n"), channels_last=True)
train_cfg = dict(max_epochs=3)
