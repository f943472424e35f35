# A baseline without attention on Fashion-MNIST: MambaOut (arXiv 2405.07992), a quarter as wide as timm's femto.
_base_ = ["./stm-swin-nano_128-3e_fashion-mnist.py"]
model = dict(
    backbone=dict(
        _delete_=True,
        model_name="mambaout_femto",
        num_classes=10,
        dims=(12, 24, 48, 72),
        depths=(1, 1, 3, 1),
    )
)
