# Synthetic digits: handwritten digits on photographs, composed on the fly at 128 px, with boxes: 2,000 scenes to train,
# 200 to test.
_base_ = ["../loaders/detection.py"]
data_preprocessor = dict(mean=[127.5] * 3, std=[127.5] * 3)
# There are few photographs: other colours make more of them, or digits are found in unseen petals.
train_pipeline = [
    dict(type="ChannelShuffle", p=0.5),
    dict(type="InvertImg", p=0.3),
    dict(type="RandomBrightnessContrast", p=0.5),
    dict(type="Affine", scale=(0.8, 1.2), translate_percent=(-0.1, 0.1), rotate=(-10, 10), p=0.5),
]
# On two cores a worker would take from the threads what it gives; with more,
# `train_dataloader.num_workers=1 train_dataloader.persistent_workers=True` is faster.
train_dataloader = dict(
    batch_size=16,
    num_workers=0,
    persistent_workers=False,
    dataset=dict(type="SyntheticDigits", split="train", task="detection", size=128, pipeline=train_pipeline),
)
val_dataloader = dict(
    batch_size=50,
    num_workers=1,
    persistent_workers=True,
    dataset=dict(type="SyntheticDigits", split="test", task="detection", size=128, pipeline=[]),
)
test_dataloader = val_dataloader
