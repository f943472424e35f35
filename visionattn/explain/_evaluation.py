"""Evaluation mode for as long as a network is looked at."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

__all__ = ["evaluating"]


@contextmanager
def evaluating(*parts: object) -> Iterator[None]:
    """All modules in evaluation mode, and each in its own afterwards; parts that are no modules are left alone."""
    networks = [part for part in parts if isinstance(part, nn.Module)]
    trained = [module for network in networks for module in network.modules() if module.training]
    try:
        for network in networks:
            network.eval()
        yield
    finally:
        for module in trained:
            module.training = True
