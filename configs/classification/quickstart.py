# Trains and evaluates a classifier of digits on data that comes with the installation, within a minute.
_base_ = ["./resnet10n-cbam_64-15e_digits.py"]
