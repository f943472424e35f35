# SGD for 256 images a step with a cosine and no warm-up: MobileNets with plug-ins.
optim_wrapper = dict(
    type="OptimWrapper",
    optimizer=dict(type="SGD", lr=0.05, momentum=0.9, weight_decay=4e-5),
)
param_scheduler = dict(type="CosineAnnealingLR", eta_min=0.0, convert_to_iter_based=True)
train_cfg = dict(by_epoch=True, max_epochs=200)
auto_scale_lr = dict(enable=True, base_batch_size=256)
