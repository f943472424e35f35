# Trains and evaluates a segmentor on scenes composed from data that comes with the installation.
_base_ = ["./fpn_resnet10n-cbam_8-4e_digit-scenes.py"]
