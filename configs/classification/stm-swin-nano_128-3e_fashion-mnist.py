# Token mixers in one narrow pyramid on Fashion-MNIST for three epochs, here Swin's shifted windows.
_base_ = ["./resnet10n_128-3e_fashion-mnist.py"]
model = dict(backbone=dict(model_name="va_stm_swin_nano", layer_scale=0.1), channels_last=False)
variants = {"va_stm_*_nano": {"layer_scale": 0.1}}
