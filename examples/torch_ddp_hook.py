"""PyTorch's DistributedDataParallel with gradients in few bits: two lines in an otherwise unchanged script.

torchrun --nproc-per-node 2 examples/torch_ddp_hook.py --bits 4
mpirun -np 2 python examples/torch_ddp_hook.py --bits 4

On GPUs if there are enough of them, else on the CPU. The data is synthetic: noisy images of ten patterns.
"""

from __future__ import annotations

import argparse
import hashlib
import os

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from cgxffcv.interop.torch import CGXState, cgx_hook


def take_ranks_of_mpirun() -> None:
    """Copies Open MPI's variables to torchrun's names, and sets the address where the ranks of one host meet."""
    if "OMPI_COMM_WORLD_RANK" in os.environ:
        for name in ("RANK", "SIZE", "LOCAL_RANK", "LOCAL_SIZE"):
            os.environ[name.replace("SIZE", "WORLD_SIZE")] = os.environ[f"OMPI_COMM_WORLD_{name}"]
        os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
        os.environ.setdefault("MASTER_PORT", "29500")


def network() -> nn.Sequential:
    features = [nn.Conv2d(3, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2)]
    features += [nn.Conv2d(32, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU(), nn.AdaptiveAvgPool2d(4)]
    return nn.Sequential(*features, nn.Flatten(), nn.Linear(1024, 128), nn.ReLU(), nn.Linear(128, 10))


class Directions:
    """Images of 16 x 16 pixels: one of ten patterns plus noise."""

    def __init__(self, device: torch.device) -> None:
        self.patterns = torch.randn(10, 3, 16, 16, generator=torch.Generator().manual_seed(0)).to(device)
        self.random = torch.Generator().manual_seed(1 + dist.get_rank())
        self.device = device

    def batch(self, size: int) -> tuple[torch.Tensor, torch.Tensor]:
        labels = torch.randint(10, (size,), generator=self.random).to(self.device)
        noise = torch.randn(size, 3, 16, 16, generator=self.random).to(self.device)
        return self.patterns[labels] + 2 * noise, labels


def replicas_are_equal(model: nn.Module) -> bool:
    whole = b"".join(parameter.detach().cpu().numpy().tobytes() for parameter in model.parameters())
    everyones = [None] * dist.get_world_size()
    dist.all_gather_object(everyones, hashlib.sha256(whole).hexdigest())
    return len(set(everyones)) == 1


def train(model: nn.Module, data: Directions, steps: int) -> list[float]:
    """The losses of all steps."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    losses = []
    for _ in range(steps):
        images, labels = data.batch(64)
        loss = nn.functional.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return torch.stack(losses).tolist()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--bits", type=int, default=4, help="1 to 8, or 32 for none")
    parser.add_argument("--steps", type=int, default=60)
    options = parser.parse_args()
    take_ranks_of_mpirun()
    if "RANK" not in os.environ:
        parser.exit(2, "start this with torchrun --nproc-per-node 2, or with mpirun -np 2 python\n")

    gpus = torch.cuda.device_count() >= int(os.environ["LOCAL_WORLD_SIZE"])
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if gpus else torch.device("cpu")
    if gpus:
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if gpus else "gloo")
    torch.manual_seed(0)

    model = DistributedDataParallel(network().to(device))
    # the two lines; "auto" would send plain gradients where that is faster, as it may be between two processes
    state = CGXState(None, compression_params={"bits": options.bits, "bucket_size": 1024}, algorithm="sra")
    model.register_comm_hook(state, cgx_hook)

    losses = train(model, Directions(device), options.steps)
    equal = replicas_are_equal(model)
    if dist.get_rank() == 0:
        plain = 4 * sum(parameter.numel() for parameter in model.parameters())
        print(f"{dist.get_world_size()} ranks on {device.type}, {options.bits} bits")
        print(f"loss: first {losses[0]:.2f}, last {losses[-1]:.2f}")
        print(f"a step sends {state.wire_bytes:,} bytes of {plain:,}")
        print(f"the replicas are {'equal' if equal else 'NOT EQUAL'}")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
