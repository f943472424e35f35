# RetinaNet on synthetic scenes of digits, with the settings of the small FCOS.
_base_ = ["./fcos_resnet10n-cbam_8-4e_digit-scenes.py"]
model = dict(
    detector=dict(_delete_=True, type="RetinaNet"),
    anchors=dict(sizes=[[16, 20, 25], [32, 40, 50], [64, 80, 100], [128, 160, 200]]),
)
