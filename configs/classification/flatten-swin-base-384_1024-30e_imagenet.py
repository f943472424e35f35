# Fine-tunes FLatten-Swin's base size at 384 px for 30 epochs from its weights for 224 px (load them with load_from).
# Published: top-1 85.0 %.
_base_ = ["./boat-swin-tiny_1024-300e_imagenet.py"]
model = dict(backbone=dict(model_name="va_flatten_swin_base_384", drop_path_rate=0.5))
train_pipeline = [
    dict(type="RandomResizedCrop", size=(384, 384), scale=(0.08, 1.0), interpolation=2),
    dict(type="HorizontalFlip", p=0.5),
    dict(type="RandAugment", config="rand-m9-mstd0.5-inc1"),
    dict(type="Erasing", scale=(0.02, 0.33), ratio=(0.3, 3.3), fill="random", p=0.25),
]
test_pipeline = [dict(type="Resize", height=384, width=384, interpolation=2)]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
optim_wrapper = dict(optimizer=dict(lr=2e-5, weight_decay=1e-8))
param_scheduler = [
    dict(type="LinearLR", start_factor=1e-2, end=5, convert_to_iter_based=True),
    dict(type="CosineAnnealingLR", eta_min=2e-7, begin=5, convert_to_iter_based=True),
]
train_cfg = dict(max_epochs=30)
