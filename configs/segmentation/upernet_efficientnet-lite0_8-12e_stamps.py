# UPerNet on synthetic scenes of objects, with the settings of the semantic FPN.
_base_ = ["./fpn_efficientnet-lite0_8-12e_stamps.py"]
model = dict(decoder=dict(_delete_=True, type="UPerNet", decoder_channels=96))
