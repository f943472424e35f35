# Averaged weights, evaluated and saved as the best. The momentum anneals: with a constant one the average of a short
# run never leaves the random start.
custom_hooks = [
    dict(
        type="EMAHook",
        ema_type="MomentumAnnealingEMA",
        momentum=0.05,
        gamma=20,
        update_buffers=True,
        begin_epoch=2,
    )
]
