# LKCA in a narrow columnar transformer.
_base_ = ["./stm-swin-nano_64-15e_digits.py"]
model = dict(backbone=dict(_delete_=True, model_name="va_lkca_vit_mini", num_classes=10))
