_base_ = ["./resnet10n-cbam_64-15e_digits.py"]
model = dict(backbone=dict(model_name="va_resnet10n_ela_b"))
