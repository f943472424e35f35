_base_ = ["./fpn_resnet10n-cbam_8-4e_digit-scenes.py"]
model = dict(decoder=dict(_delete_=True, type="DeepLabV3Plus", decoder_channels=64, decoder_atrous_rates=(2, 4, 6)))
