"""Importing this module registers every type of ours that a config can name."""

from visionattn import data, tasks

from . import amp, checkpoint, checks, finite, logs, metrics, optim, progress, seeding  # noqa: F401  (registered by importing)

for room in (data, tasks):
    for name in room.__all__:
        getattr(room, name)
