# A narrow ResNet with CBAM on scikit-learn's handwritten digits, the recipe for all narrow ResNets.
_base_ = [
    "../_base_/models/small.py",
    "../_base_/datasets/digits.py",
    "../_base_/schedules/adamw_cosine.py",
    "../_base_/default_runtime.py",
]
default_hooks = dict(logger=dict(interval=11))
variants = {"va_resnet10n*": {}}
