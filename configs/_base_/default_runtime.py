custom_imports = dict(imports=["visionattn.engine.registration"], allow_failed_imports=False)
default_hooks = dict(
    logger=dict(type="JsonLoggerHook", interval=50),
    checkpoint=dict(type="AtomicCheckpointHook", interval=1, max_keep_ckpts=3, save_best="top1"),
    classes=dict(type="ClassesHook"),
    step_seed=dict(type="StepSeedHook"),
    data_check=dict(type="DataCheckHook"),
    finite_loss=dict(type="FiniteLossHook"),
    sync_buffers=dict(type="SyncBuffersHook"),
    progress=dict(type="ProgressHook"),
)
visualizer = dict(
    type="Visualizer",
    vis_backends=[dict(type="JsonVisBackend"), dict(type="TensorboardVisBackend")],
)
env_cfg = dict(
    cudnn_benchmark=False,
    mp_cfg=dict(mp_start_method="fork", opencv_num_threads=0),
    dist_cfg=dict(backend="nccl"),
)
# The same seed gives the same run, also when it was killed and resumed. On a GPU, deterministic=True is needed too.
randomness = dict(seed=0, deterministic=False)
