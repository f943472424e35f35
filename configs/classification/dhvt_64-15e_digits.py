# DHVT on digits, narrow and with patches of 4 px.
_base_ = ["./stm-swin-nano_64-15e_digits.py"]
model = dict(
    backbone=dict(_delete_=True, model_name="va_dhvt_tiny_cifar_p4", num_classes=10, dim=96, depth=6, num_heads=3)
)
