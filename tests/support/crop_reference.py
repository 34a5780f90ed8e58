"""What the cropping decoders should produce: their rectangles, and resampling by each filter."""

import math

import numpy as np
from augment_reference import AUGMENT, below, philox


def overlaps(size, out):
    """Whole numbers: how much of each source pixel each output pixel covers, in units of 1 / out."""
    begin, end = np.arange(out)[:, None] * size, (np.arange(out)[:, None] + 1) * size
    first, last = np.arange(size)[None] * out, (np.arange(size)[None] + 1) * out
    return np.clip(np.minimum(end, last) - np.maximum(begin, first), 0, None).astype(float)


def area(image, out):
    """Exact averages, halves rounded up: the sums are whole numbers far below 2^53."""
    rows, columns = overlaps(image.shape[0], out[0]), overlaps(image.shape[1], out[1])
    whole = image.shape[0] * image.shape[1]
    planes = [(rows @ image[:, :, c] @ columns.T).astype(np.int64) for c in range(3)]
    return np.stack([(2 * plane + whole) // (2 * whole) for plane in planes], 2).astype(np.uint8)


def means(image, out):
    """The averages, not rounded."""
    rows, columns = overlaps(image.shape[0], out[0]), overlaps(image.shape[1], out[1])
    planes = [rows @ image[:, :, c] @ columns.T for c in range(image.shape[2])]
    return np.stack(planes, 2) / (image.shape[0] * image.shape[1])


def triangles(size, out):
    scale = size / out
    support, centers = max(scale, 1.0), (np.arange(out)[:, None] + 0.5) * scale
    weights = np.clip(1 - np.abs((np.arange(size)[None] + 0.5 - centers) / support), 0, None)
    return weights / weights.sum(1, keepdims=True)


def bilinear(image, out):
    rows, columns = triangles(image.shape[0], out[0]), triangles(image.shape[1], out[1])
    return np.stack([rows @ image[:, :, c] @ columns.T for c in range(image.shape[2])], 2)


def nearest(image, out):
    """The source pixel under the centre of each output pixel."""
    rows, columns = ((2 * np.arange(n) + 1) * side // (2 * n) for n, side in zip(out, image.shape[:2], strict=True))
    return image[rows][:, columns]


def central(height, width, h, w):
    h, w = min(max(h, 1), height), min(max(w, 1), width)
    return (height - h) // 2, (width - w) // 2, h, w


def clamped(height, width, ratio):
    if width / height < ratio[0]:
        return central(height, width, round(width / ratio[0]), width)
    if width / height > ratio[1]:
        return central(height, width, height, round(height * ratio[1]))
    return 0, 0, height, width


def drawn(height, width, key, scale, ratio, number=0):
    """torchvision's RandomResizedCrop.get_params, with random numbers from Philox."""
    low, high = math.log(ratio[0]), math.log(ratio[1])
    seed, epoch, sample = key
    for attempt in range(10):
        words = philox(seed, epoch, sample, AUGMENT, 63 | attempt << 6 | number << 10)
        target = height * width * (scale[0] + (scale[1] - scale[0]) * (words[0] / 2**32))
        aspect = math.exp(low + (high - low) * (words[1] / 2**32))
        w, h = round(math.sqrt(target * aspect)), round(math.sqrt(target / aspect))
        if 0 < w <= width and 0 < h <= height:
            return below(words[2], height - h + 1), below(words[3], width - w + 1), h, w
    return clamped(height, width, ratio)
