"""Makes cgxffcv/cifar/sample.npz from the official binary version of CIFAR-10.

usage: python tools/make_sample.py CIFAR-10-BATCHES-BIN [OUT.npz]

Takes the first 500 training and the first 100 test images of each class, in file order. The same input gives the
same bytes with the same zlib. Prints the SHA-256 that cgxffcv/cifar/sample.py checks.
"""

from __future__ import annotations

import sys
import zipfile
import zlib
from io import BytesIO
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from cgxffcv.cifar import sample  # noqa: E402

FIT_SHARE = 7  # every 7th image is used to fit the filters
FIT_ROUNDS = 12


def read(path: Path) -> tuple[np.ndarray, np.ndarray]:
    records = np.frombuffer(path.read_bytes(), np.uint8).reshape(-1, 3073)
    return records[:, 1:].reshape(-1, 3, 32, 32), records[:, 0]


def first_of_each_class(images: np.ndarray, labels: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    chosen = np.sort(np.concatenate([np.flatnonzero(labels == c)[:count] for c in range(10)]))
    return images[chosen], labels[chosen]


def choose(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    files = [read(folder / f"data_batch_{i}.bin") for i in range(1, 6)]
    train = first_of_each_class(*(np.concatenate(part) for part in zip(*files, strict=True)), sample.TRAIN // 10)
    test = first_of_each_class(*read(folder / "test_batch.bin"), sample.TEST // 10)
    return np.concatenate([train[0], test[0]]), np.concatenate([train[1], test[1]])


def by_position(images: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(images.transpose(1, 2, 3, 0)).astype(np.float32)


def neighbourhoods(images: np.ndarray) -> list[np.ndarray]:
    """The neighbours of every pixel, for each step: (taps, pixels)."""
    found: list[list[np.ndarray]] = [[], [], []]
    pixels = by_position(images)

    def source(step: int, y: int, x: int, near: np.ndarray) -> np.ndarray:
        found[step].append(near)
        return pixels[sample.PLANES[step], y, x]

    sample.walk(len(images), source)
    return [np.concatenate(parts, axis=1) for parts in found]


def fit(near: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Fits by least absolute error, with reweighted least squares; float32 weights, rounded to their grid."""
    rows = np.concatenate([near, np.ones((1, near.shape[1]), np.float32)]).astype(np.float64)
    weight = 1 / (4 + sample.activity(near).astype(np.float64))
    for _ in range(FIT_ROUNDS):
        scaled = rows * weight
        solution = np.linalg.solve(scaled @ rows.T, scaled @ wanted)
        weight = 1 / np.maximum(np.abs(solution @ rows - wanted), 0.5)
    whole = np.rint(solution * 2**sample.SHIFT)
    whole[-1] += 2 ** (sample.SHIFT - 1)  # floor() then rounds to the nearest
    assert 255 * np.abs(whole[:-1]).sum() + abs(whole[-1]) < 2**24
    return whole.astype(np.float32)


def limits(near: np.ndarray) -> np.ndarray:
    shares = np.linspace(0, 1, sample.CONTEXTS + 1)[1:-1]
    return np.floor(np.quantile(sample.activity(near), shares)).astype(np.float32)


def write_block(images: np.ndarray, weights: list[np.ndarray], bounds: np.ndarray) -> list[bytes]:
    pixels = by_position(images)
    streams: list[list[list[np.ndarray]]] = [[[] for _ in range(sample.CONTEXTS)] for _ in range(3)]

    def source(step: int, y: int, x: int, near: np.ndarray) -> np.ndarray:
        wanted = pixels[sample.PLANES[step], y, x]
        residual = wanted.astype(np.uint8) - sample.predict(near, weights[step]).astype(np.uint8)
        context = np.searchsorted(bounds[step], sample.activity(near), side="right")
        for k in range(sample.CONTEXTS):
            streams[step][k].append(residual[context == k])
        return wanted

    sample.walk(len(images), source)
    return [pack(np.concatenate(parts).tobytes()) for plane in streams for parts in plane]


def pack(data: bytes) -> bytes:
    packer = zlib.compressobj(9, zlib.DEFLATED, 15, 9, zlib.Z_HUFFMAN_ONLY)
    return packer.compress(data) + packer.flush()


def save(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """An .npz with fixed dates, so that the same arrays give the same bytes."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, array in arrays.items():
            buffer = BytesIO()
            np.save(buffer, array, allow_pickle=False)
            archive.writestr(zipfile.ZipInfo(f"{name}.npy", (1980, 1, 1, 0, 0, 0)), buffer.getvalue())


def main(folder: Path, out: Path) -> None:
    images, labels = choose(folder)
    some = images[::FIT_SHARE]
    near, known = neighbourhoods(some), by_position(some)
    weights = [fit(near[s], known[plane].reshape(-1)) for s, plane in enumerate(sample.PLANES)]
    bounds = np.stack([limits(part) for part in near])
    blocks = np.split(images, sample.BLOCKS)
    streams = [stream for block in blocks for stream in write_block(block, weights, bounds)]
    arrays = {"labels": labels, "bounds": bounds}
    arrays |= {f"weights{s}": weights[s] for s in range(3)}
    arrays["sizes"] = np.array([len(stream) for stream in streams], np.uint32)
    arrays["data"] = np.frombuffer(b"".join(streams), np.uint8)
    save(out, arrays)
    print(f"{out}: {out.stat().st_size:,} bytes, SHA256 = {sample.digest(images, labels)!r}")


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3):
        sys.exit(__doc__)
    main(Path(sys.argv[1]), Path(sys.argv[2]) if len(sys.argv) == 3 else sample.PATH)
