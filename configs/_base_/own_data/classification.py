# One's own classes of pictures: data sets, classes and `size` come from the config that inherits from this one.
_base_ = [
    "../loaders/classification.py",
    "../schedules/adamw_cosine.py",
    "../default_runtime.py",
]
data_preprocessor = dict(type="ImgDataPreprocessor", mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375])
model = dict(type="Classifier", loss=dict(type="CrossEntropyLoss", label_smoothing=0.1))
train_dataloader = dict(batch_size=32, num_workers=2, persistent_workers=True)
val_dataloader = dict(batch_size=32, num_workers=2, persistent_workers=True)
test_dataloader = dict(batch_size=32, num_workers=2, persistent_workers=True)
val_evaluator = dict(
    type="TorchMetrics",
    scores=dict(
        top1=dict(type="MulticlassAccuracy", average="micro"),
        confusion=dict(type="MulticlassConfusionMatrix"),
    ),
)
test_evaluator = val_evaluator
# For pretrained weights.
optim_wrapper = dict(optimizer=dict(lr=5e-4, weight_decay=0.05))
train_cfg = dict(max_epochs=30)
