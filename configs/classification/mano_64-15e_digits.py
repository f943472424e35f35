# Multipole attention in Swin's layout on digits, narrow, with patches and windows of 2 and four levels in the first
# stage.
_base_ = ["./stm-swin-nano_64-15e_digits.py"]
model = dict(
    backbone=dict(
        _delete_=True,
        model_name="va_mano_tiny",
        num_classes=10,
        dims=(16, 32, 64, 128),
        depths=(1, 1, 2, 1),
        num_heads=(1, 2, 4, 8),
        window_size=2,
        patch_size=2,
        img_size=32,
    )
)
