# Trains and evaluates a detector of digits on scenes composed from data that comes with the installation.
_base_ = ["./fcos_resnet10n-cbam_8-4e_digit-scenes.py"]
