"""The collector of mixers' losses: reported once each, in eager mode, checkpointed, compiled and distributed."""

import pytest
import torch
from torch import nn
from torch.distributed import destroy_process_group, init_process_group
from torch.utils.checkpoint import checkpoint

from visionattn.ops.losses import add_loss, collect_losses

X = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))


class Reports(nn.Module):
    """A layer whose mean square is a loss; `unused` gets its gradient from the loss alone."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.unused = nn.Parameter(torch.ones(()))

    def forward(self, x):
        x = self.linear(x)
        add_loss("power", self.unused * x.square().mean())
        return x.relu()


class Foreign(nn.Module):
    """A network that knows nothing of losses, as timm's do."""

    def __init__(self, checkpointing=False):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList(Reports() for _ in range(2))
        self.checkpointing = checkpointing

    def forward(self, x):
        for layer in self.layers:
            x = checkpoint(layer, x, use_reentrant=False) if self.checkpointing else layer(x)
        return x


def gradients(network, run=None, inside=False):
    with collect_losses() as losses:
        total = (network if run is None else run)(X).sum()
        total = total + torch.stack(losses["power"]).mean()
        if inside:
            total.backward()
    if not inside:
        total.backward()
    assert list(losses) == ["power"] and len(losses["power"]) == 2
    return [p.grad for p in network.parameters()]


def test_without_a_collector_nothing_happens():
    network = Foreign()
    assert network(X).shape == (3, 4)
    with collect_losses() as losses:
        pass
    network(X)
    assert losses == {} and set(network.state_dict()) == {
        f"layers.{i}.{name}" for i in range(2) for name in ("linear.weight", "linear.bias", "unused")
    }


@pytest.mark.parametrize("inside", [False, True], ids=["backward after", "backward inside"])
def test_checkpointed_layers_report_once(inside):
    torch.testing.assert_close(gradients(Foreign(checkpointing=True), inside=inside), gradients(Foreign()))


def test_compiles_as_one_graph():
    network = Foreign()
    compiled = torch.compile(network, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(gradients(network, compiled), gradients(Foreign()))
    assert torch.equal(compiled(X), network(X))  # and with no collector open


def test_distributed_network_gets_the_gradients(tmp_path):
    class Task(nn.Module):
        def __init__(self):
            super().__init__()
            self.network = Foreign()

        def forward(self, x):
            with collect_losses() as losses:
                y = self.network(x)
            return y.sum() + torch.stack(losses["power"]).mean()

    init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        task = nn.parallel.DistributedDataParallel(Task())
        for _ in range(2):  # a parameter without a gradient would stop the second step
            task.zero_grad()
            task(X).backward()
        grads = [p.grad for p in task.parameters()]
    finally:
        destroy_process_group()
    torch.testing.assert_close(grads, gradients(Foreign()))


def test_an_error_in_the_network_closes_the_collector():
    with pytest.raises(ZeroDivisionError), collect_losses():
        raise ZeroDivisionError
    with collect_losses():
        pass


def test_bad_use():
    message = "collect_losses\\(\\) is open already"
    with collect_losses() as losses, pytest.raises(RuntimeError, match=message), collect_losses():
        pass
    assert losses == {}
    with pytest.raises(ValueError, match=r"the value of loss 'balance' must be a scalar, got shape \(3, 4\)"):
        add_loss("balance", X)
