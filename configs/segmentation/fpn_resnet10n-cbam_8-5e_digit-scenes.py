# A small semantic FPN on synthetic scenes of digits.
_base_ = ["./deeplabv3plus_resnet10n-cbam_8-5e_digit-scenes.py"]
model = dict(
    backbone=dict(_delete_=True, model_name="va_resnet10n_cbam.digits", pretrained=True),
    decoder=dict(_delete_=True, type="FPN", decoder_pyramid_channels=64, decoder_segmentation_channels=32),
)
