_base_ = ["./fpn_resnet10n-cbam_8-4e_digit-scenes.py"]
model = dict(decoder=dict(_delete_=True, type="Segformer", decoder_segmentation_channels=64))
