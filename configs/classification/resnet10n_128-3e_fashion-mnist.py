# A narrow ResNet on Fashion-MNIST for three epochs, less than two minutes on a core: the recipe that plug-ins are
# compared by.
_base_ = [
    "../_base_/models/small.py",
    "../_base_/datasets/fashion_mnist.py",
    "../_base_/schedules/adamw_warm200.py",
    "../_base_/default_runtime.py",
]
model = dict(backbone=dict(model_name="va_resnet10n"), channels_last=True)
train_cfg = dict(max_epochs=3)
variants = {"va_resnet10n_*": {}, "va_resnet18n*": {}}
