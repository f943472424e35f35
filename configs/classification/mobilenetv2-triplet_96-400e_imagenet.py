# MobileNetV2 with triplet attention on ImageNet-1K by the authors' recipe (arXiv 2010.03045), 96 images a step, the
# rate times 0.98 after every epoch.
_base_ = ["./mobilenetv2-coord_256-200e_imagenet.py"]
model = dict(backbone=dict(model_name="va_mobilenetv2_100_triplet"))
train_dataloader = dict(batch_size=96)
optim_wrapper = dict(optimizer=dict(lr=0.045))
param_scheduler = dict(_delete_=True, type="ExponentialLR", gamma=0.98)
train_cfg = dict(max_epochs=400)
auto_scale_lr = dict(base_batch_size=96)
