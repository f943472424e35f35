_base_ = ["./deeplabv3plus_resnet10n-cbam_16-6e_digit-scenes.py"]
model = dict(decoder=dict(_delete_=True, type="FPN", decoder_pyramid_channels=64, decoder_segmentation_channels=64))
