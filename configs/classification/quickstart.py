# Trains and evaluates on data that comes with the installation: `visionattn train quickstart`.
_base_ = ["./resnet10n-cbam_64-15e_digits.py"]
