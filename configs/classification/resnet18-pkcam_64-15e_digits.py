# A ResNet-18 with PKCAM on digits, narrow and with a stem for small pictures.
_base_ = ["./resnet10n-cbam_64-15e_digits.py"]
model = dict(backbone=dict(model_name="va_resnet18_pkcam", channels=(16, 32, 64, 128), stem_type="deep", stem_width=8))
