"""ResNet-18 on ImageNet with PyTorch, fed by a cgxffcv Loader: FFCV's published 16-epoch recipe.

    python examples/imagenet_torch.py --train train.beton --val val.beton
    python examples/imagenet_torch.py --photos DIR --steps 200           # measures speed, on a set made of photographs
    torchrun --nproc-per-node 4 examples/imagenet_torch.py --train train.beton --val val.beton --bits 4

The recipe is rn18_16_epochs of github.com/libffcv/ffcv-imagenet: SGD with momentum 0.9, weight decay 5e-5 except for
norms and biases, label smoothing 0.1, batches of 1,024 in total; the rate rises to 0.5 within 2 epochs, then falls
linearly to 0; random crops of 160 pixels until epoch 11, which grow to 192 by epoch 13; tests on 256 pixels, of each
image and its mirror image. (Left out: blurring before each subsampling.) FFCV reports 66.9 % accuracy, in 35 minutes on
one A100. FFCV's data set is written from one folder per class by:

    DatasetWriter("train.beton", {"image": RGBImageField("jpg", max_resolution=400), "label": IntField()})

With --steps it trains for that many steps and prints the images per second of the loader, of the network and of both
together, and the share of the time during which the GPU waited for data.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from cgxffcv import build_info
from cgxffcv.errors import UserError
from cgxffcv.fields import IntField, RGBImageField
from cgxffcv.fields.basics import IntDecoder
from cgxffcv.fields.rgb_image import CenterCropRGBImageDecoder, RandomResizedCropRGBImageDecoder
from cgxffcv.interop.torch import CGXState, cgx_hook
from cgxffcv.loader import Loader, OrderOption
from cgxffcv.transforms import NormalizeImage, RandomHorizontalFlip, Squeeze, ToDevice, ToTensor, ToTorchImage
from cgxffcv.writer import DatasetWriter

MEAN, STD = np.array([0.485, 0.456, 0.406]) * 255, np.array([0.229, 0.224, 0.225]) * 255
PEAK_EPOCH, GROWS_FROM, GROWN_AT = 2, 11, 13  # of 16 epochs; scaled for other numbers of epochs
WARM_UP = 10  # steps before the measured ones


# --- the network -----------------------------------------------------------------------------------------------------


class Block(nn.Module):
    """Two convolutions with a shortcut around them (He et al. 2016, figure 2)."""

    def __init__(self, before: int, after: int, stride: int):
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(before, after, 3, stride, 1, bias=False), nn.BatchNorm2d(after))
        self.second = nn.Sequential(nn.Conv2d(after, after, 3, 1, 1, bias=False), nn.BatchNorm2d(after))
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or before != after:
            self.shortcut = nn.Sequential(nn.Conv2d(before, after, 1, stride, bias=False), nn.BatchNorm2d(after))

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.second(torch.relu(self.first(x))) + self.shortcut(x))


def resnet18(classes: int) -> nn.Sequential:
    layers: list[nn.Module] = [nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU(inplace=True)]
    layers.append(nn.MaxPool2d(3, 2, 1))
    before = 64
    for after in (64, 128, 256, 512):
        layers += [Block(before, after, 1 if after == 64 else 2), Block(after, after, 1)]
        before = after
    network = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, classes))
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return network


# --- the data --------------------------------------------------------------------------------------------------------


class Photographs:
    """The photographs of a folder and its sub-folders, repeated to `samples`; each is its own class."""

    def __init__(self, folder: str, samples: int | None = None):
        self.paths = sorted(p for p in Path(folder).rglob("*") if p.suffix.lower() in (".jpg", ".jpeg"))
        if not self.paths:
            raise UserError(f"--photos {folder}: no .jpg or .jpeg in it")
        self.samples = samples or len(self.paths)

    def __len__(self) -> int:
        return self.samples

    def __getitem__(self, number: int) -> tuple[Path, int]:
        chosen = number % len(self.paths)
        return self.paths[chosen], chosen


def write_sets(folder: str, photos: str, samples: int) -> tuple[str, str]:
    """Writes two files of photographs of at most 400 pixels: one with `samples`, one with each photograph once."""
    paths = os.path.join(folder, "train.beton"), os.path.join(folder, "val.beton")
    begin = time.perf_counter()
    for path, count in zip(paths, (samples, None), strict=True):
        fields = {"image": RGBImageField("jpg", max_resolution=400, jpeg_quality=90), "label": IntField()}
        DatasetWriter(path, fields, progress=False).from_indexed_dataset(Photographs(photos, count))
    print(f"{samples:,} samples written in {time.perf_counter() - begin:.1f} s")
    return paths


class Feed:
    """A Loader for training or testing, whose batches are copied to the device during the work on the previous one."""

    def __init__(self, path: str, options: argparse.Namespace, device: torch.device, training: bool):
        self.device, gpu = device, device.type == "cuda"
        side = options.resolution if training else options.test_resolution
        if training:
            self.decoder = RandomResizedCropRGBImageDecoder((side, side))
        else:
            self.decoder = CenterCropRGBImageDecoder((side, side), 224 / 256)
        kind = torch.bfloat16 if gpu else torch.float32
        flip = [RandomHorizontalFlip()] if training else []
        move = [ToTensor(), ToDevice(device, non_blocking=True)]
        self.loader = Loader(
            path,
            max(1, options.batch // world_size()),
            options.workers,
            order=OrderOption.RANDOM if training else OrderOption.SEQUENTIAL,
            distributed=dist.is_initialized(),
            seed=options.seed,
            drop_last=training,
            pipelines={
                "image": [self.decoder, *flip, *move, ToTorchImage(), NormalizeImage(MEAN, STD, kind)],
                "label": [IntDecoder(), *move, Squeeze(1)],
            },
            page_locked=device.index if gpu and build_info()["cuda"] else None,
        )
        self.stream = torch.cuda.Stream(device) if gpu else None

    def resize(self, side: int) -> None:
        """Takes effect with the next pass."""
        self.decoder.output_size = (side, side)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yields batches; the next one is copied to the GPU while the program works on the current one."""
        if self.stream is None:
            yield from self.loader
            return
        batches = iter(self.loader)
        coming = self._fetch(batches)
        while coming is not None:
            batch = coming
            torch.cuda.current_stream(self.device).wait_stream(self.stream)
            for tensor in batch:
                tensor.record_stream(torch.cuda.current_stream(self.device))
            yield batch
            coming = self._fetch(batches)

    def _fetch(self, batches: Iterator) -> tuple[Tensor, Tensor] | None:
        with torch.cuda.stream(self.stream):
            return next(batches, None)


# --- training --------------------------------------------------------------------------------------------------------


def world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def rate_at(epoch: float, epochs: int, peak: float) -> float:
    return float(np.interp(epoch, [0, PEAK_EPOCH * epochs / 16, epochs], [0, peak, 0]))


def side_at(epoch: int, options: argparse.Namespace) -> int:
    """The side of the crops, a multiple of 32."""
    borders = [GROWS_FROM * options.epochs / 16, GROWN_AT * options.epochs / 16]
    side = np.interp(epoch, borders, [options.resolution, options.last_resolution])
    return int(round(float(side) / 32)) * 32


class Training:
    def __init__(self, options: argparse.Namespace, device: torch.device, classes: int):
        self.options, self.device = options, device
        self.network = resnet18(classes).to(device, memory_format=torch.channels_last)
        self.model: nn.Module = self.network
        if dist.is_initialized():
            self.model = DistributedDataParallel(self.network)
            if options.bits < 32:  # the two lines that average the gradients in fewer bits
                state = CGXState(None, compression_params={"bits": options.bits, "bucket_size": 1024})
                self.model.register_comm_hook(state, cgx_hook)
        self.mean: AveragedModel | None = None
        if options.ema:
            self.mean = AveragedModel(self.network, multi_avg_fn=get_ema_multi_avg_fn(options.ema), use_buffers=True)
        flat = [p for p in self.network.parameters() if p.ndim == 1]
        layers = [p for p in self.network.parameters() if p.ndim > 1]
        groups = [{"params": layers, "weight_decay": 5e-5}, {"params": flat, "weight_decay": 0.0}]
        self.optimizer = torch.optim.SGD(groups, lr=options.rate, momentum=0.9)
        self.loss = nn.CrossEntropyLoss(label_smoothing=0.1)

    def half(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda")

    def step(self, images: Tensor, labels: Tensor, rate: float) -> Tensor:
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        with self.half():
            loss = self.loss(self.model(images), labels)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        if self.mean is not None:
            self.mean.update_parameters(self.network)
        return loss.detach()

    @torch.no_grad()
    def test(self, feed: Iterable[tuple[Tensor, Tensor]]) -> float:
        """The share of correct labels over all ranks' images, each tested with its mirror image."""
        network = self.network if self.mean is None else self.mean
        network.eval()
        counts = torch.zeros(2, device=self.device)
        for images, labels in feed:
            with self.half():
                said = network(images) + network(images.flip(3))
            counts += torch.stack([(said.argmax(1) == labels).sum(), torch.tensor(len(labels), device=self.device)])
        network.train()
        if dist.is_initialized():
            dist.all_reduce(counts)
        right, seen = counts.tolist()
        return right / max(seen, 1)


def train(training: Training, feed: Feed, tests: Feed) -> None:
    options, steps = training.options, len(feed.loader)
    if steps == 0:
        raise UserError(f"--batch {options.batch}: the training set does not fill one batch")
    for epoch in range(options.epochs):
        feed.resize(side_at(epoch, options))
        begin, losses = time.perf_counter(), []
        for number, (images, labels) in enumerate(feed):
            rate = rate_at(epoch + number / steps, options.epochs, options.rate)
            losses.append(training.step(images, labels, rate))
        loss = float(torch.stack(losses).mean())
        seconds = time.perf_counter() - begin
        right = training.test(tests)
        if is_first():
            images_a_second = steps * options.batch / seconds
            print(
                f"epoch {epoch + 1:>2}: {side_at(epoch, options)} px, loss {loss:.3f}, {images_a_second:,.0f} "
                f"images/s, {right:.1%} of the tests right",
                flush=True,
            )


# --- measuring -------------------------------------------------------------------------------------------------------


class Clock:
    """Seconds of the device: events on its stream, or the wall clock on a CPU."""

    def __init__(self, device: torch.device):
        self.gpu = device.type == "cuda"

    def now(self) -> torch.cuda.Event | float:
        if not self.gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def between(self, begin, end) -> float:
        if not self.gpu:
            return end - begin
        end.synchronize()
        return begin.elapsed_time(end) / 1e3


def loader_alone(feed: Feed, steps: int) -> float:
    """Seconds for `steps` batches that are not trained on."""
    batches = iter(feed)
    for _ in range(WARM_UP):
        next(batches)
    clock = Clock(feed.device)
    begin, started = clock.now(), time.perf_counter()
    for _ in range(steps):
        next(batches)
    return max(clock.between(begin, clock.now()), time.perf_counter() - started)


def with_data(training: Training, batches: Iterator, steps: int) -> tuple[float, float]:
    """Seconds for `steps` steps, and how many of them the device only waited for a batch."""
    clock, marks = Clock(training.device), []
    begin = clock.now()
    done = begin
    for _ in range(steps):
        images, labels = next(batches)
        marks.append((done, clock.now()))
        training.step(images, labels, training.options.rate / 10)
        done = clock.now()
    total = clock.between(begin, done)
    return total, sum(clock.between(*pair) for pair in marks)


def measure(training: Training, feed: Feed) -> None:
    options, steps = training.options, training.options.steps
    images = steps * options.batch
    # one pass, however few the samples: a pass over ImageNet has 1,251 steps, so the cost of starting one hardly counts
    draws = np.random.default_rng(options.seed)
    feed.loader.order = draws.integers(0, feed.loader.num_samples, (WARM_UP + steps) * options.batch)
    alone = loader_alone(feed, steps)
    kept = next(iter(feed))
    same = iter([kept] * (WARM_UP + steps))
    with_data(training, same, WARM_UP)
    network, _ = with_data(training, same, steps)
    batches = iter(feed)
    with_data(training, batches, WARM_UP)
    both, waited = with_data(training, batches, steps)
    if not is_first():
        return
    threads = feed.loader.num_workers
    print(
        f"{steps} steps of {options.batch} images of {options.resolution} px on {training.device.type}, "
        f"{world_size()} x {threads} threads"
    )
    print(f"the loader alone:           {images / alone:>10,.0f} images/s")
    print(f"the network, of one batch:  {images / network:>10,.0f} images/s")
    print(f"both together:              {images / both:>10,.0f} images/s, {network / both:.1%} of the network's rate")
    print(f"waiting for data:           {waited / both:>10.2%} of the time")


# --- the program -----------------------------------------------------------------------------------------------------


def is_first() -> bool:
    return not dist.is_initialized() or dist.get_rank() == 0


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--train", metavar="FILE", help="a .beton file with images and integer labels")
    parser.add_argument("--val", metavar="FILE", help="the same, for the tests")
    parser.add_argument("--photos", metavar="DIR", help="make both from the photographs in DIR, repeated to --samples")
    parser.add_argument("--samples", type=int, default=20_000, metavar="N")
    parser.add_argument("--classes", type=int, default=1000, metavar="N")
    parser.add_argument("--epochs", type=int, default=16, metavar="N")
    parser.add_argument("--batch", type=int, default=1024, metavar="N", help="images per step, on all ranks together")
    parser.add_argument("--rate", type=float, metavar="X", help="peak rate (default: 0.5 for a batch of 1,024)")
    parser.add_argument("--resolution", type=int, default=160, metavar="N", help="side of the first epochs' crops")
    parser.add_argument("--last-resolution", type=int, default=192, metavar="N", help="and of the last epochs' crops")
    parser.add_argument("--test-resolution", type=int, default=256, metavar="N")
    parser.add_argument("--ema", type=float, default=0.0, metavar="X", help="decay of an average of weights to test")
    parser.add_argument("--bits", type=int, default=32, metavar="N", help="of gradients between ranks (32: exact)")
    parser.add_argument("--workers", type=int, default=-1, metavar="N", help="loader threads (default: all cores)")
    parser.add_argument("--seed", type=int, default=0, metavar="N")
    parser.add_argument("--steps", type=int, metavar="N", help="measure this many steps, then exit")
    options = parser.parse_args()
    if (options.photos is None) == (options.train is None or (options.val is None and options.steps is None)):
        parser.error("give --train and --val, or --photos")
    if options.photos and "RANK" in os.environ:
        parser.error("--photos is for one process: write the files first, and give --train and --val")
    if options.rate is None:
        options.rate = 0.5 * options.batch / 1024
    return options


def start_ranks() -> torch.device:
    """Returns the device of this process, which joins the others if torchrun started it."""
    local = int(os.environ.get("LOCAL_RANK", 0))
    gpu = torch.cuda.device_count() > local
    device = torch.device("cuda", local) if gpu else torch.device("cpu")
    if gpu:
        torch.cuda.set_device(device)
        torch.backends.cudnn.benchmark = True
    if "RANK" in os.environ:
        dist.init_process_group("nccl" if gpu else "gloo")
    return device


def main() -> None:
    options = arguments()
    device = start_ranks()
    torch.manual_seed(options.seed)
    with contextlib.ExitStack() as stack:
        train_path, test_path = options.train, options.val
        if options.photos:
            folder = stack.enter_context(tempfile.TemporaryDirectory())
            train_path, test_path = write_sets(folder, options.photos, options.samples)
        feed = Feed(train_path, options, device, training=True)
        stack.callback(feed.loader.close)
        training = Training(options, device, options.classes)
        if options.steps:
            measure(training, feed)
        else:
            tests = Feed(test_path, options, device, training=False)
            stack.callback(tests.loader.close)
            train(training, feed, tests)
    if dist.is_initialized():
        dist.destroy_process_group()


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"imagenet_torch.py: {error}")
