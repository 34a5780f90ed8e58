#!/usr/bin/env python3
"""The usual PyTorch code for the demo's recipe: the baseline of `python -m cgxffcv bench table`.

    python examples/vanilla_pytorch.py --data-root data
    torchrun --nproc-per-node 4 examples/vanilla_pytorch.py --data-root data
    mpirun -np 4 python examples/vanilla_pytorch.py --data-root data

ResNet-9 in float32 (with the framework's defaults), batch 256 per process, 20 epochs of SGD with learning rate 0.1, a
test after each. Images go one by one through PIL and torchvision's transforms (or simple equivalents, if torchvision is
not installed) in the worker processes of a DataLoader; DistributedDataParallel averages the gradients. Prints a line
of JSON for each epoch: seconds since the start of the process, accuracy on the test set.
"""

from __future__ import annotations

import time

STARTED = time.time()

import argparse  # noqa: E402
import json  # noqa: E402
import os  # noqa: E402
import sys  # noqa: E402

import numpy as np  # noqa: E402

from cgxffcv import cifar  # noqa: E402
from cgxffcv.errors import UserError  # noqa: E402

try:
    import torch
    from PIL import Image, ImageOps
    from torch import nn
    from torch.utils.data import DataLoader, Dataset, DistributedSampler, Subset
except ImportError as error:
    sys.exit(f"vanilla_pytorch.py: {error}. It needs PyTorch and Pillow: pip install torch torchvision Pillow")
try:
    from torchvision import transforms as usual
except ImportError:
    usual = None

MEAN, STD = (125.307, 122.961, 113.8575), (51.5865, 50.847, 51.255)  # of pixels 0..255
FILL = (125, 122, 113)
SHIFT, HOLE = 2, 8


# --- data ------------------------------------------------------------------------------------------------------------


class RandomHorizontalFlip:
    """Mirrors a PIL image with probability 1/2."""

    def __call__(self, image):
        return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if torch.rand(1).item() < 0.5 else image


class RandomCrop:
    """Pads a PIL image with black on all sides and crops it to the given size at a random position."""

    def __init__(self, size, padding):
        self.size, self.padding = size, padding

    def __call__(self, image):
        padded = ImageOps.expand(image, border=self.padding, fill=0)
        x, y = (int(torch.randint(0, 2 * self.padding + 1, (1,)).item()) for _ in "xy")
        return padded.crop((x, y, x + self.size, y + self.size))


class ToTensor:
    """A PIL image as a float32 tensor (channel, row, column) from 0 to 1."""

    def __call__(self, image):
        return torch.from_numpy(np.asarray(image, np.float32).transpose(2, 0, 1) / 255)


class Normalize:
    """(tensor - mean) / std, per channel."""

    def __init__(self, mean, std):
        self.mean, self.std = (torch.tensor(values)[:, None, None] for values in (mean, std))

    def __call__(self, tensor):
        return (tensor - self.mean) / self.std


class Cutout:
    """Fills a random square inside a tensor with the mean colour. (torchvision has no such transform.)"""

    def __init__(self, size):
        self.size, self.fill = size, torch.tensor([value / 255 for value in FILL])[:, None, None]

    def __call__(self, tensor):
        room = tensor.shape[1] - self.size + 1
        x, y = (int(torch.randint(0, room, (1,)).item()) for _ in "xy")
        tensor[:, y : y + self.size, x : x + self.size] = self.fill
        return tensor


class Compose:
    """Applies steps one after the other."""

    def __init__(self, steps):
        self.steps = steps

    def __call__(self, value):
        for step in self.steps:
            value = step(value)
        return value


def pipelines():
    """The transforms of the training images and those of the test images."""
    flip, crop, tensor, normalise = RandomHorizontalFlip, RandomCrop, ToTensor, Normalize
    if usual is not None:
        flip, crop, tensor = usual.RandomHorizontalFlip, usual.RandomCrop, usual.ToTensor
        normalise = usual.Normalize
    scaled = normalise([value / 255 for value in MEAN], [value / 255 for value in STD])
    return Compose([flip(), crop(32, padding=SHIFT), tensor(), Cutout(HOLE), scaled]), Compose([tensor(), scaled])


class Images(Dataset):
    """uint8 images (n, 32, 32, 3) as transformed PIL images, with their labels."""

    def __init__(self, images, labels, transform):
        self.images, self.labels, self.transform = images, labels, transform

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return self.transform(Image.fromarray(self.images[index])), int(self.labels[index])


def make_loaders(options, rank, ranks, pinned):
    """(training loader, its sampler, test loader of this rank's share)."""
    data = cifar.obtain(options.data_root, options.source, say=lambda text: None)
    some = slice(options.limit or None)
    for_training, for_test = pipelines()
    train = Images(data.train_images[some], data.train_labels[some], for_training)
    test = Images(data.test_images[some], data.test_labels[some], for_test)
    if len(train) < options.batch_size * ranks:
        raise UserError(f"{len(train)} images are fewer than one batch of {options.batch_size} on {ranks} processes")
    sampler = DistributedSampler(train, ranks, rank, shuffle=True, seed=options.seed, drop_last=True)
    share = Subset(test, range(rank, len(test), ranks))
    usual_options = {
        "batch_size": options.batch_size,
        "num_workers": options.workers,
        "pin_memory": pinned,
        "persistent_workers": options.workers > 0,
    }
    return (
        DataLoader(train, sampler=sampler, drop_last=True, **usual_options),
        sampler,
        DataLoader(share, **usual_options),
    )


# --- network ---------------------------------------------------------------------------------------------------------


class Residual(nn.Module):
    """x + body(x)"""

    def __init__(self, *body):
        super().__init__()
        self.body = nn.Sequential(*body)

    def forward(self, x):
        return x + self.body(x)


class Scale(nn.Module):
    """x times a constant"""

    def __init__(self, factor):
        super().__init__()
        self.factor = factor

    def forward(self, x):
        return x * self.factor


def conv(inputs, outputs, kernel=3, stride=1, padding=1):
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, padding, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)
    )


def make_network():
    """ResNet-9 of FFCV's CIFAR example."""
    return nn.Sequential(
        conv(3, 64),
        conv(64, 128, kernel=5, stride=2, padding=2),
        Residual(conv(128, 128), conv(128, 128)),
        conv(128, 256),
        nn.MaxPool2d(2),
        Residual(conv(256, 256), conv(256, 256)),
        conv(256, 128, padding=0),
        nn.AdaptiveMaxPool2d(1),
        nn.Flatten(),
        nn.Linear(128, 10, bias=False),
        Scale(0.2),
    )


# --- training --------------------------------------------------------------------------------------------------------


def place():
    """(rank, number of processes, local rank) from torchrun or mpirun; (0, 1, 0) without either."""
    for names in (
        ("RANK", "WORLD_SIZE", "LOCAL_RANK"),
        ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK"),
    ):
        if all(name in os.environ for name in names):
            return tuple(int(os.environ[name]) for name in names)
    return 0, 1, 0


def choose_device(name, local_rank, ranks):
    if name == "cpu" or (name == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise UserError("--device cuda: PyTorch sees no GPU here (no GPU, no driver, or a PyTorch without CUDA)")
    if ranks > 1 and local_rank >= torch.cuda.device_count():
        raise UserError(f"process {local_rank} of this machine has no GPU: PyTorch sees {torch.cuda.device_count()}")
    torch.cuda.set_device(local_rank)
    torch.backends.cudnn.benchmark = True
    return torch.device("cuda", local_rank)


def join(rank, ranks, device):
    """Joins the other processes: NCCL between GPUs, Gloo between CPUs."""
    os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
    os.environ.setdefault("MASTER_PORT", "29500")
    backend = "nccl" if device.type == "cuda" else "gloo"
    torch.distributed.init_process_group(backend, rank=rank, world_size=ranks)


def train_epoch(model, loader, criterion, optimizer, device):
    """Makes one pass over this process's share; returns the mean loss."""
    model.train()
    total, steps = torch.zeros((), device=device), 0
    for images, labels in loader:
        images, labels = images.to(device, non_blocking=True), labels.to(device, non_blocking=True)
        optimizer.zero_grad()
        loss = criterion(model(images), labels)
        loss.backward()
        optimizer.step()
        total += loss.detach()
        steps += 1
    return total.item() / steps


def test_epoch(network, loader, device, ranks):
    """The accuracy over all processes' shares, each image once, with rank 0's running statistics."""
    network.eval()
    sums = torch.zeros(2, dtype=torch.float64, device=device)
    with torch.no_grad():
        for buffer in network.buffers() if ranks > 1 else ():
            torch.distributed.broadcast(buffer, 0)
        for images, labels in loader:
            images, labels = images.to(device, non_blocking=True), labels.to(device, non_blocking=True)
            sums[0] += (network(images).argmax(1) == labels).sum()
            sums[1] += len(labels)
        if ranks > 1:
            torch.distributed.all_reduce(sums)
    return sums[0].item() / sums[1].item()


class Report:
    """Writes lines of JSON to standard output and to a file, on rank 0 only."""

    def __init__(self, path, rank):
        self.rank = rank
        self.file = open(path, "w") if path and rank == 0 else None  # noqa: SIM115

    def __call__(self, event, **values):
        if self.rank != 0:
            return
        now = time.time()
        line = json.dumps({"event": event, "time": round(now, 3), "seconds": round(now - STARTED, 3), **values})
        for file in (sys.stdout, self.file):
            if file is not None:
                print(line, file=file, flush=True)


def parse():
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("--data-root", default="data", metavar="DIR", help="folder with the official CIFAR-10 files")
    parser.add_argument("--source", default="local", choices=("local", "download", "sample"))
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--batch-size", type=int, default=256, help="per process")
    parser.add_argument("--workers", type=int, default=8, help="of each process's DataLoaders")
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    parser.add_argument("--limit", type=int, default=0, metavar="N", help="the first N images only")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", metavar="FILE", help="also write the lines to this file")
    return parser.parse_args()


def main():
    options = parse()
    rank, ranks, local_rank = place()
    report = Report(options.json, rank)
    device = choose_device(options.device, local_rank, ranks)
    if ranks > 1:
        join(rank, ranks, device)
    torch.manual_seed(options.seed + rank)  # DistributedDataParallel starts all from rank 0's parameters
    train_loader, sampler, test_loader = make_loaders(options, rank, ranks, device.type == "cuda")
    network = make_network().to(device)
    model = network
    if ranks > 1:
        ids = [device.index] if device.type == "cuda" else None
        model = nn.parallel.DistributedDataParallel(network, device_ids=ids)
    criterion = nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, [60, 120, 160], gamma=0.2)
    parameters = sum(parameter.numel() for parameter in network.parameters())
    report(
        "start",
        ranks=ranks,
        device=str(device),
        torch=torch.__version__,
        torchvision=usual is not None,
        images=len(train_loader.dataset),
        parameters=parameters,
        workers=options.workers,
    )
    best = accuracy = 0.0
    for epoch in range(1, options.epochs + 1):
        sampler.set_epoch(epoch)
        loss = train_epoch(model, train_loader, criterion, optimizer, device)
        schedule.step()
        accuracy = test_epoch(network, test_loader, device, ranks)
        best = max(best, accuracy)
        report("epoch", epoch=epoch, train_loss=loss, test_accuracy=accuracy)
    report("end", test_accuracy=accuracy, best_accuracy=best)
    if ranks > 1:
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    try:
        main()
    except (UserError, OSError) as error:
        sys.exit(f"vanilla_pytorch.py: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
