# Token mixers in one narrow pyramid on digits at 32 px, here Swin's shifted windows.
_base_ = [
    "../_base_/models/small.py",
    "../_base_/datasets/digits.py",
    "../_base_/schedules/adamw_cosine.py",
    "../_base_/default_runtime.py",
]
model = dict(backbone=dict(model_name="va_stm_swin_nano", layer_scale=0.1))
optim_wrapper = dict(optimizer=dict(lr=2e-3, weight_decay=0.05))
default_hooks = dict(logger=dict(interval=11))
variants = {"va_stm_*_nano": {"layer_scale": 0.1}, "va_lkca_vit_mini": {}}
