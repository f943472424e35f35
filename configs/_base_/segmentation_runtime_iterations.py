# For schedules that count iterations.
_base_ = ["./segmentation_runtime.py"]
default_hooks = dict(checkpoint=dict(by_epoch=False, interval=8000))
log_processor = dict(by_epoch=False)
