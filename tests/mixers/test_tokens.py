"""Any mixer on tokens: the same numbers as on the map, extra tokens in front, and one line where it is needed."""

import pytest
import torch

from visionattn import catalog
from visionattn.mixers import LinearAttention, SoftmaxAttention, Tokens, WindowAttention

MIXERS = [card for card in catalog.cards("mixer") if card.standalone]
every_mixer = pytest.mark.parametrize("card", MIXERS, ids=lambda card: card.name)


def built(card):
    torch.manual_seed(0)
    return card.constructor(24, **next(iter(card.cases.values()))).eval()


def tokens(count, batch=2, width=24):
    return torch.randn(batch, count, width, generator=torch.Generator().manual_seed(1))


@every_mixer
def test_a_mixer_of_maps_says_how_to_wrap_it(card):
    if getattr(card.constructor, "takes_tokens", False):
        assert built(card)(tokens(16)).shape == (2, 16, 24)
        return
    message = rf"{type(built(card)).__name__} takes maps \(B, H, W, C\), got \(2, 16, 24\): visionattn.mixers.Tokens\("
    with pytest.raises(ValueError, match=message) as error:
        built(card)(tokens(16))
    assert "\n" not in str(error.value)


@every_mixer
@torch.no_grad()
def test_mixes_tokens_as_the_map(card):
    mixer, x = built(card), tokens(35)
    expected = mixer(x.unflatten(1, (5, 7))).flatten(1, 2)
    torch.testing.assert_close(Tokens(mixer, (5, 7))(x), expected)
    torch.testing.assert_close(Tokens(mixer)(x, grid=(5, 7)), expected)
    square = tokens(36)
    torch.testing.assert_close(Tokens(mixer)(square), mixer(square.unflatten(1, (6, 6))).flatten(1, 2))


@torch.no_grad()
def test_a_grid_may_be_one_row():
    mixer = SoftmaxAttention(24, num_heads=3).eval()
    for grid in ((1, 9), (9, 1), (1, 1)):
        x = tokens(grid[0] * grid[1])
        torch.testing.assert_close(Tokens(mixer, grid)(x), mixer(x.unflatten(1, grid)).flatten(1, 2))


@every_mixer
@torch.no_grad()
def test_extra_tokens_are_mixed_by_global_mixers_and_kept_by_others(card):
    mixer, x = built(card), tokens(2 + 36)
    out = Tokens(mixer, prefix=2)(x)
    if hasattr(mixer, "forward_tokens"):
        torch.testing.assert_close(out, mixer.forward_tokens(x, (6, 6), 2))
        assert not torch.equal(out[:, :2], x[:, :2])
    else:
        assert torch.equal(out[:, :2], x[:, :2])
        torch.testing.assert_close(out[:, 2:], Tokens(mixer)(x[:, 2:]))


def test_state_dict_is_the_mixer_s():
    mixer = SoftmaxAttention(24, num_heads=3)
    assert [*Tokens(mixer).state_dict()] == [f"mixer.{key}" for key in mixer.state_dict()]


@pytest.mark.parametrize("mixer", [LinearAttention(24, num_heads=3), WindowAttention(24, num_heads=3, window_size=4)])
def test_compiles_and_exports(mixer):
    module, x = Tokens(mixer, (5, 7), prefix=1).eval(), tokens(36)
    compiled = torch.compile(module, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(x), module(x))
    program = torch.export.export(module, (x,), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))
    more = tokens(36, batch=3)
    torch.testing.assert_close(program.module()(more), module(more))


@pytest.mark.parametrize(
    ("arguments", "x", "message"),
    [
        ({}, tokens(17), r"17 tokens less 0 of prefix are no square: give Tokens grid=\(H, W\), or prefix="),
        ({"prefix": 20}, tokens(17), "17 tokens less 20 of prefix are no square"),
        ({"grid": (4, 4)}, tokens(17), "17 tokens are not 0 of prefix and a grid of 4 x 4"),
        ({}, torch.zeros(1, 4, 4, 24), r"takes tokens \(B, N, C\), got \(1, 4, 4, 24\): give maps to the mixer itself"),
    ],
)
def test_wrong_tokens(arguments, x, message):
    with pytest.raises(ValueError, match=message):
        Tokens(SoftmaxAttention(24, num_heads=3), **arguments)(x)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"prefix": -1}, "prefix must be at least 0, got -1"), ({"grid": (0, 4)}, r"grid must be \(H, W\), at least 1")],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        Tokens(SoftmaxAttention(24, num_heads=3), **arguments)
