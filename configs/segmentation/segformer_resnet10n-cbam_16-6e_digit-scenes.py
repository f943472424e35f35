_base_ = ["./deeplabv3plus_resnet10n-cbam_16-6e_digit-scenes.py"]
model = dict(decoder=dict(_delete_=True, type="Segformer", decoder_segmentation_channels=64))
