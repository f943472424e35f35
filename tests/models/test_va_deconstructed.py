"""Networks with deconstructed attention: where the forms stand, and where queries and keys come from."""

import pytest
import timm
import torch
from networks import create, settled

from visionattn.mixers import DeconstructedAttention
from visionattn.testing.fixtures import relative_error

SMALL = {"depth": 4, "dim": 32}


def forms(model):
    return [module.kind for module in model.modules() if isinstance(module, DeconstructedAttention)]


def test_stands_in_all_or_some_blocks():
    def found(**kwargs):
        return forms(create("va_deconstructed_uniform_nano", **SMALL, **kwargs))

    assert found() == ["uniform"] * 4
    assert found(blocks="odd") == ["uniform", "softmax"] * 2
    assert found(blocks="even") == ["softmax", "uniform"] * 2
    assert found(blocks=[1]) == ["softmax", "uniform", "softmax", "softmax"]


@pytest.mark.parametrize("kind", ["static", "random", "fixed"])
@pytest.mark.parametrize("blocks", ["all", "odd"])
def test_external_sources(kind, blocks):
    """Of any size, with extra tokens, and no picture sees another."""
    model = settled(f"va_deconstructed_{kind}_nano", **SMALL, blocks=blocks, global_pool="token", num_registers=2)
    x = torch.randn(3, 3, 28, 36)
    with torch.inference_mode():
        out = model(x)
        assert out.shape == (3, 10) and relative_error(model(x[1:2]), out[1:2]) < 1e-5
        maps = model.forward_intermediates(x, intermediates_only=True)
    assert [tuple(m.shape) for m in maps] == [(3, 32, 7, 9)] * 4
    x.requires_grad_()
    model.train()(x).square().sum().backward()
    assert all(p.grad is not None for p in model.parameters())


def weights(model, x):
    """The matrices that the blocks apply, from the tokens that they get."""
    found = []

    def recording(module):
        inner = module.forward_tokens

        def forward_tokens(tokens, *args, **kwargs):
            found.append(module.weights(tokens, kwargs.get("source")))
            return inner(tokens, *args, **kwargs)

        return forward_tokens

    for module in model.modules():
        if isinstance(module, DeconstructedAttention):
            module.forward_tokens = recording(module)
    with torch.inference_mode():
        model(x)
    return found


@pytest.mark.parametrize("kind", ["random", "fixed"])
def test_attention_of_a_stream_does_not_depend_on_the_picture(kind):
    model = settled(f"va_deconstructed_{kind}_nano", **SMALL)
    first = weights(model, torch.randn(2, 3, 32, 32))
    for rows in first:  # neither of these pictures nor of others
        torch.testing.assert_close(rows, rows[:1].expand_as(rows))
    assert not torch.allclose(first[0], first[1], atol=1e-4)
    model = settled(f"va_deconstructed_{kind}_nano", **SMALL)
    second = weights(model, torch.randn(2, 3, 32, 32))
    for ours, theirs in zip(first, second, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_static_queries_and_keys_are_of_the_first_embeddings():
    model = settled("va_deconstructed_static_nano", **SMALL)
    x, got = torch.randn(2, 3, 32, 32), []
    for block in model.blocks:
        mixer = block.attn.fn.mixer
        inner = mixer.forward_tokens
        mixer.forward_tokens = lambda t, *a, inner=inner, **k: (got.append(k["source"]), inner(t, *a, **k))[1]
    with torch.inference_mode():
        model(x)
        expected = model.blocks[0].attn.norm(model.start(x).x)
    assert len(got) == 4 and all(torch.equal(source, expected) for source in got)


@pytest.mark.parametrize("kind", ["static", "random", "fixed"])
def test_compiles_and_exports(kind):
    model = settled(f"va_deconstructed_{kind}_nano", **SMALL)
    x = torch.randn(2, 3, 32, 32)
    expected = model(x)
    torch.testing.assert_close(torch.compile(model, fullgraph=True, backend="aot_eager")(x), expected)
    program = torch.export.export(model, (x,), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))
    more = torch.randn(5, 3, 32, 32)
    torch.testing.assert_close(program.module()(more), model(more), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["static", "random"])
def test_gradient_checkpointing_changes_nothing(kind):
    results = []
    for checkpointed in (False, True):
        model = settled(f"va_deconstructed_{kind}_nano", **SMALL).train()
        model.set_grad_checkpointing(checkpointed)
        torch.manual_seed(1)
        x = torch.randn(2, 3, 32, 32, requires_grad=True)
        model(x).square().sum().backward()
        results.append(x.grad)
    torch.testing.assert_close(*results)


def test_the_source_is_stored_with_the_weights():
    model = settled("va_deconstructed_fixed_nano", **SMALL)
    picture, x = torch.randn(3, 50, 40), torch.randn(1, 3, 32, 32)
    before = model(x)
    model.store_source(picture)
    assert not torch.equal(model(x), before)
    again = create("va_deconstructed_fixed_nano", **SMALL).eval()
    again.load_state_dict(model.state_dict())
    torch.testing.assert_close(again(x), model(x))
    assert {"source", "blocks.0.attn.fn.qkv.weight"} <= set(model.state_dict())


def test_bad_input():
    with pytest.raises(ValueError, match=r"kind must be one of softmax, .*, got 'none'"):
        timm.create_model("va_deconstructed_uniform_nano", kind="none")
    with pytest.raises(ValueError, match="blocks must be one of all, odd, even, got 'third'"):
        timm.create_model("va_deconstructed_uniform_nano", blocks="third")
    for wrong in ([8], []):
        with pytest.raises(ValueError, match="blocks must be some of 0 to 7, got"):
            timm.create_model("va_deconstructed_uniform_nano", blocks=wrong)
    with pytest.raises(ValueError, match="only kind='fixed' has a picture"):
        create("va_deconstructed_static_nano", **SMALL).store_source(torch.randn(3, 4, 4))
    with pytest.raises(ValueError, match=r"picture must be \(3, H, W\), got \(1, 4, 4\)"):
        create("va_deconstructed_fixed_nano", **SMALL).store_source(torch.randn(1, 4, 4))
