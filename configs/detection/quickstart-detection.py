# Trains and evaluates a detector on synthetic digits, composed from data that comes with the installation.
_base_ = ["./fcos_resnet10n-cbam_8-4e_digit-scenes.py"]
