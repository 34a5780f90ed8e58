"""Batches on a GPU as CuPy arrays: computes the mean and standard deviation of a data set's colours, over all ranks.

    mpirun -np 2 python examples/cupy_statistics.py FILE.beton [FIELD]

The loader moves its batches to the GPU while CuPy computes there (`ToDevice`); CuPy takes them over without a copy
(DLPack), and an allreduce of CuPy arrays is queued on CuPy's stream. Needs a GPU and cupy. FIELD: the field of images,
all of one size (default: `image`).
"""

import sys

import cupy

from cgxffcv import comm
from cgxffcv.fields.decoders import SimpleRGBImageDecoder
from cgxffcv.loader import Loader
from cgxffcv.reader import Reader
from cgxffcv.transforms import ToDevice


def main(path: str, field: str = "image") -> None:
    with comm.world() as world, Reader(path) as reader:
        gpu = world.local_rank % cupy.cuda.runtime.getDeviceCount()
        share = {"rank": world.rank, "world_size": world.size}
        pipelines = dict.fromkeys(reader.fields) | {field: [SimpleRGBImageDecoder(), ToDevice(f"cuda:{gpu}")]}
        with (
            cupy.cuda.Device(gpu),
            Loader(path, 256, pipelines=pipelines, arrays="numpy", drop_last=False, **share) as loader,
        ):
            sums = cupy.zeros((3, 3), cupy.float64)  # rows: count, sum, sum of squares; columns: colours
            for (batch,) in loader:
                pixels = cupy.from_dlpack(batch).reshape(-1, 3).astype(cupy.float64)
                sums += cupy.stack([cupy.ones_like(pixels).sum(0), pixels.sum(0), (pixels * pixels).sum(0)])
            world.allreduce(sums, op="sum")
            mean = sums[1] / sums[0]
            deviation = cupy.sqrt(sums[2] / sums[0] - mean * mean)
            if world.rank == 0:
                print("mean", *(f"{value:.2f}" for value in mean.tolist()))
                print("deviation", *(f"{value:.2f}" for value in deviation.tolist()))


if __name__ == "__main__":
    main(*sys.argv[1:])
