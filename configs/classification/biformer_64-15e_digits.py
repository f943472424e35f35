# BiFormer on digits, narrow, with a stem that halves the picture only and four regions a side.
_base_ = ["./stm-swin-nano_64-15e_digits.py"]
model = dict(
    backbone=dict(
        _delete_=True,
        model_name="va_biformer_tiny",
        num_classes=10,
        dims=(16, 32, 64, 128),
        depths=(1, 1, 2, 1),
        num_heads=(1, 2, 4, 8),
        topk=(1, 4, 8, -2),
        n_win=4,
        stem_stride=2,
    )
)
