"""FFCV itself on one file: a cell of `bench loader --rival ffcv`.

    PYTHON rival_ffcv.py '{"decoder": "random", "size": [224, 224], ...}' FILE THREADS EPOCHS BATCH

PYTHON is an interpreter that has FFCV 1.0.2; it need not have this package, of which nothing is imported here. Prints a
line of JSON: the seconds of the first epoch, in which FFCV compiles its pipeline, and of EPOCHS further ones.
"""

import json
import sys
import time

import numpy as np


def pipeline(cell):
    """FFCV's operations for what the cell asks for."""
    from ffcv import transforms as tf
    from ffcv.fields import decoders

    if cell["decoder"] == "random":
        steps = [decoders.RandomResizedCropRGBImageDecoder(tuple(cell["size"]))]
    elif cell["decoder"] == "center":
        steps = [decoders.CenterCropRGBImageDecoder(tuple(cell["size"]), cell["ratio"])]
    else:
        steps = [decoders.SimpleRGBImageDecoder()]
    if cell["flip"]:
        steps.append(tf.RandomHorizontalFlip())
    if cell["shift"]:
        steps += [tf.RandomTranslate(cell["shift"], tuple(cell["fill"])), tf.Cutout(cell["hole"], tuple(cell["fill"]))]
    if cell["mean"]:
        steps.append(tf.NormalizeImage(np.array(cell["mean"]), np.array(cell["std"]), np.float16))
    steps.append(tf.ToTensor())
    if cell["mean"]:
        steps.append(tf.ToTorchImage(channels_last=not cell["planar"]))
    return steps


def epoch(loader):
    """Seconds and images of one epoch."""
    begin, count = time.perf_counter(), 0
    for batch in loader:
        count += len(batch[0])
    return time.perf_counter() - begin, count


def main(cell, path, threads, epochs, batch):
    from ffcv.loader import Loader, OrderOption

    cell = json.loads(cell)
    order = OrderOption.RANDOM if cell["shuffled"] else OrderOption.SEQUENTIAL
    loader = Loader(
        path,
        int(batch),
        num_workers=int(threads),
        order=order,
        drop_last=cell["drop_last"],
        pipelines={"image": pipeline(cell)},
    )
    first, _ = epoch(loader)
    cpu = time.process_time()
    passes = [epoch(loader) for _ in range(int(epochs))]
    cpu = time.process_time() - cpu
    print(json.dumps({"first": first, "seconds": [took for took, _ in passes], "images": passes[0][1], "cpu": cpu}))


if __name__ == "__main__":
    main(*sys.argv[1:])
