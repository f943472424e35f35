"""Small tasks made of scikit-learn's digits and of symbols, each of which needs one ability of a mixer.

Training and test pictures hold different digits. A task is a pair of pictures and answers; -100 in a map of answers
asks for nothing.
"""

from functools import cache

import numpy as np
import torch
from torch.nn import functional as F

from visionattn.data.digits import Digits

__all__ = ["Task", "cluttered_digits", "copied_symbols", "digit_pairs", "digits", "digits_on_canvas"]
__all__ += ["ordered_neighbours", "recalled_symbols"]

Task = tuple[torch.Tensor, torch.Tensor]


@cache
def digits(split: str) -> Task:
    """Single digits, `(N, 1, 8, 8)` from 0 to 3, which small networks learn sooner from, and their classes."""
    data = Digits(split, [])
    return torch.from_numpy(data.images.astype(np.float32) / 85).unsqueeze(1), torch.from_numpy(data.labels)


def ordered_neighbours(split: str, count: int, seed: int) -> Task:
    """Four by four digits, `(count, 1, 32, 32)`, and whether the 3 stands directly to the left of the 5.

    There is one of each in every picture: in half of them as asked for, otherwise the other way round, one above the
    other, or apart. Which digits there are tells nothing.
    """
    images, labels = digits(split)
    draw = np.random.default_rng((seed, split == "test"))
    by_class = [np.flatnonzero(labels.numpy() == number) for number in range(10)]
    others = np.flatnonzero(~np.isin(labels.numpy(), (3, 5)))
    pictures, answers = [], []
    three: tuple[int, int]
    five: tuple[int, int]
    for number in range(count):
        chosen = draw.choice(others, (4, 4))
        kind = number % 6
        if kind in (0, 2, 4):  # in order
            row, column = map(int, draw.integers((4, 3)))
            three, five = (row, column), (row, column + 1)
        elif kind == 1:  # the other way round
            row, column = map(int, draw.integers((4, 3)))
            three, five = (row, column + 1), (row, column)
        elif kind == 3:  # one above the other
            row, column = map(int, draw.integers((3, 4)))
            three, five = (row, column), (row + 1, column)
        else:  # apart
            three, five = (0, 0), (0, 1)
            while abs(three[0] - five[0]) + abs(three[1] - five[1]) < 2:
                first, second = map(int, draw.choice(16, 2, replace=False))
                three, five = divmod(first, 4), divmod(second, 4)
        chosen[three], chosen[five] = draw.choice(by_class[3]), draw.choice(by_class[5])
        tiles = images[torch.from_numpy(chosen.ravel())].view(4, 4, 8, 8)
        pictures.append(tiles.permute(0, 2, 1, 3).reshape(1, 32, 32))
        answers.append(int(kind % 2 == 0))
    return torch.stack(pictures), torch.tensor(answers)


def cluttered_digits(split: str, count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A digit of 16 x 16 among pieces of others, `(count, 1, 32, 32)`, its class, and where it is, on 8 x 8 patches."""
    images, labels = digits(split)
    large = F.interpolate(images, scale_factor=2.0, mode="bilinear")
    draw = np.random.default_rng((seed, split == "test"))
    pictures, there = torch.zeros(count, 1, 32, 32), torch.zeros(count, 8, 8, dtype=torch.bool)
    chosen = draw.integers(len(images), size=count)
    for number, picture in enumerate(pictures):
        for _ in range(8):
            piece = large[draw.integers(len(images)), :, (top := draw.integers(11)) : top + 6, 5:11]
            y, x = draw.integers(27, size=2)
            picture[:, y : y + 6, x : x + 6] = piece
        y, x = 4 * draw.integers(5, size=2)
        picture[:, y : y + 16, x : x + 16] = large[chosen[number]]
        there[number, y // 4 : y // 4 + 4, x // 4 : x // 4 + 4] = True
    return pictures, labels[torch.from_numpy(chosen)], there


def digits_on_canvas(split: str, side: int, count: int, seed: int) -> Task:
    """A digit of 8 x 8 somewhere on an empty canvas, `(count, 1, side, side)`, and its class."""
    images, labels = digits(split)
    draw = np.random.default_rng((seed, side, split == "test"))
    pictures = torch.zeros(count, 1, side, side)
    chosen = torch.from_numpy(draw.integers(len(images), size=count))
    for picture, image, (y, x) in zip(pictures, images[chosen], draw.integers(side - 7, size=(count, 2)), strict=True):
        picture[:, y : y + 8, x : x + 8] = image
    return pictures, labels[chosen]


def digit_pairs(split: str, count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Two digits, each somewhere among pieces of others, `(count, 2, 12, 12)`, and whether their class is the same.

    Also where they are: for each patch of 2 x 2 its share in the digit, `(count, 2, 6, 6)`.
    """
    images, labels = digits(split)
    draw = np.random.default_rng((seed, split == "test"))
    by_class = [np.flatnonzero(labels.numpy() == number) for number in range(10)]
    pictures, answers = torch.zeros(count, 2, 12, 12), torch.arange(count) % 2
    there = torch.zeros_like(pictures)
    for picture, places, same in zip(pictures, there, answers, strict=True):
        first = draw.integers(10)
        second = first if same else (first + draw.integers(1, 10)) % 10
        for side, place, number in zip(picture, places, (first, second), strict=True):
            for _ in range(3):
                y, x = draw.integers(9, size=2)
                side[y : y + 4, x : x + 4] = images[draw.integers(len(images)), 0, 2:6, 2:6][: 12 - y, : 12 - x]
            y, x = draw.integers(5, size=2)
            side[y : y + 8, x : x + 8] = images[draw.choice(by_class[number]), 0]
            place[y : y + 8, x : x + 8] = 1
    return pictures, answers, F.avg_pool2d(there, 2)


def copied_symbols(side: int, count: int, seed: int, kinds: int = 8) -> Task:
    """Symbols at random, `(count, kinds, side, side)`, and at each place the symbol two rows above."""
    symbols = torch.randint(kinds, (count, side, side), generator=torch.Generator().manual_seed(seed))
    answers = torch.full_like(symbols, -100)
    answers[:, 2:] = symbols[:, :-2]
    return F.one_hot(symbols, kinds).movedim(-1, 1).float(), answers


def recalled_symbols(count: int, seed: int, pairs: int = 8) -> Task:
    """A row of keys, each with a value, above a row of the same keys in another order: `(count, 2 * pairs, 2, pairs)`.

    What is asked for is the value of each key below.
    """
    generator = torch.Generator().manual_seed(seed)
    values = torch.randint(pairs, (count, pairs), generator=generator)
    above, below = (torch.rand(count, pairs, generator=generator).argsort(1) for _ in range(2))
    keys = F.one_hot(torch.stack((above, below), 1), pairs).float()
    shown = torch.stack((F.one_hot(values.gather(1, above), pairs).float(), torch.zeros(count, pairs, pairs)), 1)
    answers = torch.stack((torch.full_like(below, -100), values.gather(1, below)), 1)
    return torch.cat((keys, shown), -1).movedim(-1, 1), answers
