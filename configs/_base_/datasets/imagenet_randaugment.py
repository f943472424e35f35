# ImageNet-1K as vision transformers are trained on it: strong augmentation, bicubic resizing, a large centre crop.
_base_ = ["./imagenet.py"]
train_pipeline = [
    dict(type="RandomResizedCrop", size=(224, 224), scale=(0.08, 1.0), interpolation=2),
    dict(type="HorizontalFlip", p=0.5),
    dict(type="RandAugment", config="rand-m9-mstd0.5-inc1"),
    dict(type="Erasing", scale=(0.02, 0.33), ratio=(0.3, 3.3), fill="random", p=0.25),
]
test_pipeline = [
    dict(type="SmallestMaxSize", max_size=248, interpolation=2),
    dict(type="CenterCrop", height=224, width=224),
]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
