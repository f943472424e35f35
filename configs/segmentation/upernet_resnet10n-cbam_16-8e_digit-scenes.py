_base_ = ["./fpn_resnet10n-cbam_16-8e_digit-scenes.py"]
model = dict(decoder=dict(_delete_=True, type="UPerNet", decoder_channels=64))
