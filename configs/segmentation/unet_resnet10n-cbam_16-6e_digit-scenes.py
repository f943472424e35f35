_base_ = ["./deeplabv3plus_resnet10n-cbam_16-6e_digit-scenes.py"]
model = dict(
    backbone=dict(out_indices=(0, 1, 2, 3, 4)),
    decoder=dict(_delete_=True, type="Unet", decoder_channels=(96, 64, 32, 16, 8)),
)
