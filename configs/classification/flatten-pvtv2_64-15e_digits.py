# FLatten-PVTv2 on digits, narrow and with a stem that halves the picture only.
_base_ = ["./stm-swin-nano_64-15e_digits.py"]
model = dict(
    backbone=dict(
        _delete_=True,
        model_name="va_flatten_pvtv2_b0",
        num_classes=10,
        dims=(16, 32, 64, 128),
        depths=(2, 2, 2, 2),
        num_heads=(2, 2, 4, 8),
        patch_size=2,
        img_size=32,
    )
)
