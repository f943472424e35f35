# Trains and evaluates a segmentor on synthetic digits, composed from data that comes with the installation.
_base_ = ["./deeplabv3plus_resnet10n-cbam_8-5e_digit-scenes.py"]
