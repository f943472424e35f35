_base_ = [
    "../_base_/models/small.py",
    "../_base_/datasets/fashion_mnist.py",
    "../_base_/schedules/adamw_cosine.py",
    "../_base_/default_runtime.py",
]
train_cfg = dict(max_epochs=3)
