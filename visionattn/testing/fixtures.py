"""Reads the golden fixtures: outputs of the official codes for weights and inputs regenerated from a seed."""

import json
import zlib
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch

# Of a checkout: fixtures are not part of an installed package.
FOLDER = Path(__file__).parents[2] / "tests" / "golden"


def filled(key: str, shape: list[int]) -> np.ndarray:
    """The value of one entry of the reference's state dict, by its name and shape."""
    noise = np.random.default_rng(zlib.crc32(key.encode())).standard_normal(shape)
    if key.endswith("num_batches_tracked"):
        return np.zeros(shape, np.int64)
    if key.endswith("running_var"):
        value = 1 + 0.1 * np.abs(noise)
    elif key.endswith("running_mean"):
        value = 0.1 * noise
    elif len(shape) >= 2:
        value = noise / np.sqrt(prod(shape[1:]))
    elif key.endswith(".weight"):
        value = 1 + 0.1 * noise
    else:
        value = 0.1 * noise
    return np.asarray(value, np.float32)


def normal(seed: int, shape: list[int] | torch.Size) -> torch.Tensor:
    """Standard normal float32 numbers, as the fixtures draw them."""
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(tuple(shape)).astype(np.float32))


@dataclass(frozen=True)
class Golden:
    """One run of a reference implementation."""

    meta: dict[str, Any]
    arrays: dict[str, torch.Tensor]

    @property
    def state_dict(self) -> dict[str, torch.Tensor]:
        """The reference's weights under its own names, without the entries it builds itself."""
        kept = set(self.meta["kept"])
        return {key: torch.from_numpy(filled(key, shape)) for key, shape, _ in self.meta["keys"] if key not in kept}

    @property
    def input(self) -> torch.Tensor:
        return normal(self.meta["input_seed"], self.meta["input_shape"])


def load(name: str, folder: str | Path = FOLDER) -> Golden:
    """Reads the fixture `<folder>/<name>.npz`, `tests/golden` of a checkout by default."""
    with np.load(Path(folder) / f"{name}.npz", allow_pickle=False) as file:
        arrays = {key: torch.from_numpy(file[key]) for key in file.files if key != "meta"}
        return Golden(json.loads(str(file["meta"])), arrays)


def relative_error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    """Largest difference over the largest expected magnitude."""
    return ((actual.double() - expected.double()).abs().max() / expected.double().abs().max()).item()


def check_module(
    module: torch.nn.Module, golden: Golden, tolerance: float, gradient_tolerance: float | None = None
) -> None:
    """Asserts that a module reproduces a fixture: output, input gradient and, in train mode, running statistics.

    Args:
        module: The module with the reference's weights loaded.
        golden: The fixture.
        tolerance: Allowed relative error of the output and the gradient.
        gradient_tolerance: Another one for the gradient.
    """
    module.train(golden.meta["mode"] == "train")
    x = golden.input.requires_grad_()
    out = module(x)
    (out * normal(golden.meta["input_seed"] + 1, out.shape)).sum().backward()
    assert relative_error(out, golden.arrays["out_0"]) < tolerance
    assert x.grad is not None and relative_error(x.grad, golden.arrays["grad_x"]) < (gradient_tolerance or tolerance)


def authors_file(golden: Golden, path: Path) -> dict[str, str]:
    """Writes a checkpoint as an author would publish it.

    Args:
        golden: Whose weights it holds.
        path: The file.

    Returns:
        What makes timm load it: a `pretrained_cfg_overlay`.
    """
    torch.save({"state_dict": {f"module.{k}": v for k, v in golden.state_dict.items()}, "epoch": 300}, path)
    return {"file": str(path)}
