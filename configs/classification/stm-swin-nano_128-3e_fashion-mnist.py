# Token mixers in one narrow pyramid on Fashion-MNIST for three epochs, here Swin's shifted windows.
_base_ = ["./resnet10n_128-3e_fashion-mnist.py"]
model = dict(backbone=dict(_delete_=True, model_name="va_stm_swin_nano", num_classes=10, layer_scale=0.1))
optim_wrapper = dict(optimizer=dict(lr=2e-3, weight_decay=0.05))
variants = {"va_stm_*_nano": {"layer_scale": 0.1}}
