"""Importing this module registers every type of this package that a config can name."""

from visionattn import data, tasks  # noqa: F401  (tasks are registered by importing their room)

from . import (  # noqa: F401  (registered by importing)
    amp,
    attention,
    checkpoint,
    checks,
    classes,
    finite,
    logs,
    metrics,
    optim,
    progress,
    seeding,
    trackers,
)

for name in data.__all__:
    getattr(data, name)
