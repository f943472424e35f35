# Trains and evaluates a segmentor of digits on scenes composed from data that comes with the installation.
_base_ = ["./deeplabv3plus_resnet10n-cbam_8-5e_digit-scenes.py"]
