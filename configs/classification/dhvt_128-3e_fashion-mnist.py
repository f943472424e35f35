# DHVT on Fashion-MNIST for three epochs, narrow and with patches of 4 px.
_base_ = ["./resnet10n_128-3e_fashion-mnist.py"]
model = dict(
    backbone=dict(_delete_=True, model_name="va_dhvt_tiny_cifar_p4", num_classes=10, dim=96, depth=6, num_heads=3)
)
optim_wrapper = dict(optimizer=dict(lr=2e-3, weight_decay=0.05))
