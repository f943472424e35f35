_base_ = ["./fpn_resnet10n-cbam_8-4e_digit-scenes.py"]
model = dict(decoder=dict(_delete_=True, type="Unet", decoder_channels=(64, 48, 32, 16)))
