# BOAT-Swin on digits, narrow and with patches of 2 px.
_base_ = ["./stm-swin-nano_64-15e_digits.py"]
model = dict(
    backbone=dict(
        _delete_=True,
        model_name="va_boat_swin_tiny",
        num_classes=10,
        dims=(16, 32, 64, 128),
        depths=(2, 2, 2, 2),
        num_heads=(2, 2, 4, 8),
        patch_size=2,
    )
)
