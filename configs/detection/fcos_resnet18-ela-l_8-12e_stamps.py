# FCOS on cut-out photographs over one of our networks, from scratch.
_base_ = ["./fcos_efficientnet-lite0_8-12e_stamps.py"]
model = dict(backbone=dict(_delete_=True, model_name="va_resnet18_ela_l"))
