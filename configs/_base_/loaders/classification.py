# What all classification data sets share: pictures of one size in a batch, augmentation that the seed repeats.
train_dataloader = dict(
    drop_last=True,
    sampler=dict(type="SeededSampler", shuffle=True),
    collate_fn=dict(type="stack_collate"),
)
val_dataloader = dict(
    sampler=dict(type="DefaultSampler", shuffle=False),
    collate_fn=dict(type="stack_collate"),
)
test_dataloader = val_dataloader
val_cfg = dict()
test_cfg = dict()
