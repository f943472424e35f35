_base_ = ["./stm-swin-nano_64-15e_digits.py"]
model = dict(backbone=dict(model_name="va_stm_lkca_nano"))
