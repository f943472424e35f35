"""Convolution of a token map with kernels as large as the map, in three equivalent formulations.

With a kernel of `2H - 1` by `2W - 1` every position sees every other. A smaller kernel counts as zero outside, and what
a larger one has beyond the reach of any two positions is cut off; neither changes the result.
"""

import torch
from torch.nn import functional as F

from ._autocast import wide
from ._modes import compiling, needs_formula
from .eager.depthwise_conv import DepthwiseConv, opaque_conv

__all__ = ["interpolate_kernel", "large_kernel_conv", "toeplitz_matrix"]

# Measured forward and backward together, on one thread of an AMD EPYC in float32, over grids of 8 to 56 positions a
# side, 96 to 768 channels, 1 to 192 kernels, batches of 1 to 8. In units of one position of the matmul, roughly:
# - the matmul costs one per position of the map, if each matrix serves some channels: with fewer than
#   `_MATMUL_CHANNELS`, writing the matrices is most of the work;
# - the convolution costs two per tap with the hand-written backward pass and up to fifteen with PyTorch's, where taps
#   that only meet the padding are free; forward alone it takes about as long as the matmul;
# - the FFT costs about the same per position for every size of map and kernel.
_MATMUL_CHANNELS = 16
_CONV_TAP, _CONV_TAP_PLAIN = 2, 8
_FFT = 700
# Numbers in the matrices above which a traced program, which has no FFT, convolves.
_MATMUL_NUMBERS = 2**25
# Taps from which the hand-written backward pass of the convolution beats PyTorch's, threefold at 27 x 27.
_CONV_BY_HAND = 100


def large_kernel_conv(x: torch.Tensor, kernel: torch.Tensor, *, backend: str | None = None) -> torch.Tensor:
    """Cross-correlates each channel with its kernel, at equal size. `(B, H, W, C), (G, 1, kh, kw) -> (B, H, W, C)`.

    Position (r, c) receives `kernel[kh // 2 + i - r, kw // 2 + j - c]` times position (i, j); outside is zero.

    Args:
        x: The map, of any size.
        kernel: Odd kernels; channel c takes kernel `c // (C / G)`.
        backend: `conv`, a depthwise convolution; `matmul`, a product with the doubly Toeplitz matrix of each kernel; or
            `fft`, which computes in float32 at least and cannot be exported to ONNX. None chooses by the shapes.

    Raises:
        ValueError: If the kernel is even, its number does not divide the channels, or the backend is unknown.
    """
    _check(kernel)
    if x.size(3) % len(kernel):
        raise ValueError(f"the number of kernels must divide the channels, got {len(kernel)} for {x.size(3)}")
    if backend is None:
        backend = _choose(x.shape[1:], kernel.shape, by_hand=_by_hand(x), exportable=needs_formula())
    elif backend not in _BACKENDS:
        raise ValueError(f"backend must be one of {', '.join(_BACKENDS)}, got {backend!r}")
    return _BACKENDS[backend](x, _cropped(kernel, *x.shape[1:3]))


def toeplitz_matrix(kernel: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """The convolution as an attention matrix. `(G, 1, kh, kw) -> (G, N, N)`.

    Rows are the positions that receive, columns those that give, both in raster order; `N = height * width`.
    """
    _check(kernel)
    vertical, horizontal = height - 1 - kernel.size(2) // 2, width - 1 - kernel.size(3) // 2
    taps = F.pad(kernel, (horizontal, horizontal, vertical, vertical))
    if compiling() and not torch.is_grad_enabled():
        # A compiler looks each number up but copies windows; their gradient is slower than that of a table.
        windows = taps.squeeze(1).unfold(1, height, 1).unfold(2, width, 1).flip(1, 2)
        return windows.reshape(-1, height * width, height * width)
    rows, columns = (torch.arange(n, device=kernel.device) for n in (height, width))
    down, right = rows - rows[:, None] + height - 1, columns - columns[:, None] + width - 1
    index = down[:, None, :, None] * (2 * width - 1) + right[None, :, None, :]
    # In float32 for half precision: the gradient of a tap is the sum of up to N numbers.
    # index_select: PyTorch's gathers by indexing take three to six times as long.
    matrix = taps.flatten(1).to(wide(taps)).index_select(1, index.flatten()).to(kernel.dtype)
    return matrix.view(-1, height * width, height * width)


def interpolate_kernel(kernel: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Enlarges kernels that do not span a grid, linearly, keeping the centre and the rim.

    `(G, 1, kh, kw) -> (G, 1, max(kh, 2 * height - 1), max(kw, 2 * width - 1))`. The weights shrink as a position
    sees more others, so that sums over these stay about the same.
    """
    return _stretched(_stretched(kernel, 2 * height - 1, 2), 2 * width - 1, 3)


def _by_hand(x: torch.Tensor) -> bool:
    """Whether convolutions of this map have a quick backward pass. PyTorch's CPU code for float16 is slow both ways."""
    return x.device.type == "cpu" and x.dtype != torch.float16 and (compiling() or not needs_formula())


def _by_conv(x: torch.Tensor, kernel: torch.Tensor) -> torch.Tensor:
    by_hand = _by_hand(x)
    if by_hand and torch.is_autocast_enabled("cpu"):  # The backward pass runs outside of autocast.
        x = x.to(torch.get_autocast_dtype("cpu"))
    kernel = kernel.to(x.dtype).expand(-1, x.size(3) // len(kernel), -1, -1).flatten(0, 1).unsqueeze(1)
    if not by_hand or kernel[0].numel() < _CONV_BY_HAND:
        return DepthwiseConv.compute(x, kernel)
    if compiling():
        convolved: torch.Tensor = opaque_conv(x.contiguous(), kernel.contiguous())
        return convolved
    return DepthwiseConv.apply(DepthwiseConv.compute, x, kernel)


def _by_matmul(x: torch.Tensor, kernel: torch.Tensor) -> torch.Tensor:
    batch, height, width, channels = x.shape
    matrix = toeplitz_matrix(kernel, height, width).to(x.dtype)
    groups, positions, _ = matrix.shape
    if groups == 1:
        return torch.bmm(matrix.expand(batch, -1, -1), x.reshape(batch, positions, channels)).view(x.shape)
    values = x.reshape(batch, positions, groups, channels // groups).permute(2, 1, 0, 3)
    out = torch.bmm(matrix, values.reshape(groups, positions, -1))
    return out.view(groups, positions, batch, channels // groups).permute(2, 1, 0, 3).reshape(x.shape)


def _by_fft(x: torch.Tensor, kernel: torch.Tensor) -> torch.Tensor:
    batch, height, width, channels = x.shape
    if batch == 0:  # Some releases of MKL transform nothing but something.
        return _by_conv(x, kernel)
    vertical, horizontal = kernel.size(2) // 2, kernel.size(3) // 2
    # What wraps around falls on positions that are not read.
    rows, columns = _fft_length(height + vertical), _fft_length(width + horizontal)
    taps = F.pad(kernel[:, 0].to(wide(x)), (0, columns - kernel.size(3), 0, rows - kernel.size(2)))
    weight = torch.fft.rfft2(taps.roll((-vertical, -horizontal), (1, 2))).conj().unsqueeze(1)
    values = x.permute(0, 3, 1, 2).contiguous().to(wide(x))
    # Not rfft2: the rows of padding need no transform along the width, neither forth nor back.
    spectrum = torch.fft.fft(torch.fft.rfft(values, columns, dim=3), rows, dim=2)
    spectrum = spectrum.view(batch, len(kernel), channels // len(kernel), *spectrum.shape[2:]) * weight
    out = torch.fft.irfft(torch.fft.ifft(spectrum, dim=3)[..., :height, :], columns, dim=4)[..., :width]
    return out.flatten(1, 2).permute(0, 2, 3, 1).to(x.dtype).contiguous()


_BACKENDS = {"conv": _by_conv, "matmul": _by_matmul, "fft": _by_fft}


def _choose(size: tuple[int, ...], kernel: tuple[int, ...], *, by_hand: bool, exportable: bool) -> str:
    """The formulation for a map `(H, W, C)`, independent of the batch, which is dynamic in exported programs."""
    height, width, channels = size
    positions, groups = height * width, kernel[0]
    taps = min(positions, min(kernel[2], 2 * height - 1) * min(kernel[3], 2 * width - 1))
    conv = taps * (_CONV_TAP if by_hand or exportable else _CONV_TAP_PLAIN)
    matmul = positions if channels // groups >= _MATMUL_CHANNELS else float("inf")
    if exportable:
        return "matmul" if matmul < conv and groups * positions**2 <= _MATMUL_NUMBERS else "conv"
    return min((matmul, "matmul"), (conv, "conv"), (_FFT, "fft"))[1]


def _check(kernel: torch.Tensor) -> None:
    if kernel.ndim != 4 or kernel.size(1) != 1 or not kernel.size(2) % 2 or not kernel.size(3) % 2:
        raise ValueError(f"kernel must be (G, 1, odd, odd), got {tuple(kernel.shape)}")


def _cropped(kernel: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """The kernel without the rim, which no pair of positions of the grid reaches."""
    top, left = max(0, kernel.size(2) // 2 - height + 1), max(0, kernel.size(3) // 2 - width + 1)
    return kernel[:, :, top : kernel.size(2) - top, left : kernel.size(3) - left]


def _stretched(kernel: torch.Tensor, size: int, axis: int) -> torch.Tensor:
    taps = kernel.size(axis)
    if size <= taps:
        return kernel
    at = torch.linspace(0, taps - 1, size, device=kernel.device)
    weight = (1 - (at[:, None] - torch.arange(taps, device=kernel.device)).abs()).clamp(min=0) * (taps + 1) / (size + 1)
    # Contiguous: padding by zero copies other strides where its compiled form does not.
    return (kernel.transpose(axis, -1) @ weight.mT.to(kernel.dtype)).transpose(axis, -1).contiguous()


def _fft_length(least: int) -> int:
    """The next length that factors into 2, 3, 5 and 7."""
    length = least
    while True:
        rest = length
        for factor in (2, 3, 5, 7):
            while rest % factor == 0:
                rest //= factor
        if rest == 1:
            return length
        length += 1
