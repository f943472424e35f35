# SGD for 256 images a step, the rate divided by ten every 30 epochs: the recipe of most of the plug-ins' papers.
optim_wrapper = dict(
    type="OptimWrapper",
    optimizer=dict(type="SGD", lr=0.1, momentum=0.9, weight_decay=1e-4),
)
param_scheduler = dict(type="MultiStepLR", milestones=[30, 60, 90, 120, 150, 180], gamma=0.1)
train_cfg = dict(by_epoch=True, max_epochs=100)
auto_scale_lr = dict(enable=True, base_batch_size=256)
