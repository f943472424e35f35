"""Fully sharded training (FSDP2): weights, gradients and the optimiser's states are split over all processes.

    torchrun --nproc-per-node 2 examples/distributed/fsdp2.py --epochs 3

Data parallel training copies a network to every GPU; `visionattn train --launcher pytorch` does that, and it is faster
as long as network and optimiser fit. This is for those that do not. It is plain PyTorch: the network is one of timm's
registry, each of its blocks is sharded on its own, so that only one is whole at a time. Checkpoints are written by all
processes at once and resume with any number of them; at the end there is one file of plain weights.
"""

import argparse
import re
from pathlib import Path

import timm
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from safetensors.torch import save_file
from sklearn.datasets import load_digits
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_state_dict,
    set_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.nn import functional as F

import visionattn  # noqa: F401  (registers the networks)


def shard(model, mesh, bf16):
    """Splits each block, then what is left, over the processes of a mesh."""
    policy = MixedPrecisionPolicy(torch.bfloat16, torch.float32) if bf16 else MixedPrecisionPolicy()
    for name, module in model.named_modules():
        if re.fullmatch(r"(stages\.\d+\.)?blocks\.\d+", name):
            fully_shard(module, mesh=mesh, mp_policy=policy)
    return fully_shard(model, mesh=mesh, mp_policy=policy)


def batches(count, size, epoch, rank, world):
    """This process's share of each batch: one order for all, a function of the epoch."""
    order = torch.randperm(count, generator=torch.Generator().manual_seed(epoch))
    return [batch[rank::world] for batch in order.split(size)[: count // size]]


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", default="va_vit_softmax_nano", help="of timm or ours, built of blocks")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=64, help="over all processes")
    parser.add_argument("--bf16", action="store_true", help="compute in bfloat16; weights and sums stay float32")
    parser.add_argument("--grad-checkpointing", action="store_true", help="compute blocks again in the backward pass")
    parser.add_argument("--work-dir", type=Path, default=Path("fsdp2"))
    options = parser.parse_args()

    device = "cuda" if torch.cuda.is_available() else "cpu"
    dist.init_process_group("nccl" if device == "cuda" else "gloo")
    rank, world = dist.get_rank(), dist.get_world_size()
    if device == "cuda":
        torch.cuda.set_device(rank % torch.cuda.device_count())
    torch.manual_seed(0)  # the same start everywhere
    model = timm.create_model(options.model, num_classes=10, in_chans=1).to(device)
    model.set_grad_checkpointing(options.grad_checkpointing)
    model = shard(model, init_device_mesh(device, (world,)), options.bf16)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3, weight_decay=0.05)

    digits = load_digits()
    pictures = F.interpolate(torch.tensor(digits.images[:, None] / 8 - 1, dtype=torch.float32), 32).to(device)
    labels = torch.tensor(digits.target, device=device)
    first, checkpoint = 0, options.work_dir / "checkpoint"
    if checkpoint.is_dir():  # resume
        weights, states = get_state_dict(model, optimizer)
        loaded = {"model": weights, "optimizer": states, "epoch": 0}
        dcp.load(loaded, checkpoint_id=checkpoint)
        set_state_dict(model, optimizer, model_state_dict=loaded["model"], optim_state_dict=loaded["optimizer"])
        first = loaded["epoch"]

    for epoch in range(first, options.epochs):
        model.train()
        total = torch.zeros(2, device=device)
        for batch in batches(len(labels), options.batch_size, epoch, rank, world):
            optimizer.zero_grad()
            logits = model(pictures[batch])
            loss = F.cross_entropy(logits.float(), labels[batch])
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            total += torch.stack([loss.detach() * len(batch), torch.tensor(len(batch), device=device)])
        dist.all_reduce(total)
        weights, states = get_state_dict(model, optimizer)
        dcp.save({"model": weights, "optimizer": states, "epoch": epoch + 1}, checkpoint_id=checkpoint)
        if rank == 0:
            print(f"epoch {epoch + 1}  loss {(total[0] / total[1]).item():.4f}  {world} processes", flush=True)

    # One file of plain weights, gathered in the first process.
    whole = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    if rank == 0:
        save_file({name: value.contiguous() for name, value in whole.items()}, options.work_dir / "model.safetensors")
        print(f"written: {options.work_dir / 'model.safetensors'}")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
