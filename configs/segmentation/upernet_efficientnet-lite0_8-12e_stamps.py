_base_ = ["./fpn_efficientnet-lite0_8-12e_stamps.py"]
model = dict(decoder=dict(_delete_=True, type="UPerNet", decoder_channels=96))
