# The recipe of the plug-ins' papers: SGD for 256 images a step, the rate divided by ten every 30 epochs.
optim_wrapper = dict(
    type="OptimWrapper",
    optimizer=dict(type="SGD", lr=0.1, momentum=0.9, weight_decay=1e-4),
)
param_scheduler = dict(type="MultiStepLR", milestones=[30, 60], gamma=0.1)
train_cfg = dict(by_epoch=True, max_epochs=90)
auto_scale_lr = dict(enable=True, base_batch_size=256)
