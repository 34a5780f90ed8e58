"""What the loader's image pipelines must produce, operation by operation, in plain NumPy and Python integers."""

import copy
import fractions

import numpy as np

from cgxffcv import transforms as tf

MASK = 0xFFFFFFFF
ORDER, AUGMENT = 1, 2
DRAW = {
    "RandomHorizontalFlip": 1,
    "AlternatingFlip": 2,
    "RandomTranslate": 3,
    "RandomCrop": 4,
    "Cutout": 5,
    "RandomBrightness": 6,
    "ImageMixup": 7,
    "RandomVerticalFlip": 8,
    "RandomContrast": 9,
    "RandomSaturation": 10,
    "RandomHue": 11,
    "RandomGrayscale": 12,
    "Solarization": 13,
    "RandomErasing": 14,
    "GaussianBlur": 15,
    "CutMix": 16,
    "RandAugment": 19,
}


def philox(seed, epoch, item, stream, index):
    """Philox4x32-10 as the paper (Salmon et al., SC'11) defines it."""
    key = [seed & MASK, seed >> 32]
    c = [item & MASK, item >> 32, epoch, (stream << 16) | index]
    for _ in range(10):
        first, second = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [(second >> 32) ^ c[1] ^ key[0], second & MASK, (first >> 32) ^ c[3] ^ key[1], first & MASK]
        key = [(key[0] + 0x9E3779B9) & MASK, (key[1] + 0xBB67AE85) & MASK]
    return c


def below(word, n):
    return (word * n) >> 32


def shuffled(items, seed, epoch, draw=0, offset=0):
    """Fisher-Yates from the end; draw i uses half of a counter's four words."""
    items = list(items)
    for i in range(len(items) - 1, 0, -1):
        words = philox(seed, epoch, (offset + i) // 2, ORDER, draw)[2 * ((offset + i) % 2) :]
        other = ((words[1] << 32 | words[0]) * (i + 1)) >> 64
        items[i], items[other] = items[other], items[i]
    return items


class Words(list):
    """The four words of a draw; `again(number)` gives those of a further try."""

    again = None


def draws(step, occurrence, number, key):
    """The words of an operation's draw for one image; key is (seed, epoch, sample)."""
    seed, epoch, sample = key
    if step.operation == "AlternatingFlip":
        epoch = 0
    index = DRAW[step.operation] | occurrence << 6 | number << 10
    words = Words(philox(seed, epoch, sample, AUGMENT, index))
    words.again = lambda attempt: philox(seed, epoch, sample | attempt << 56, AUGMENT, index)
    return words


def happens(word, p):
    return (word >> 8) / 2**24 < np.float32(p)


def is_float(image):
    return image.dtype.kind == "f"


def wide(image):
    return image.astype(np.float64 if is_float(image) else np.int64)


def grey(image):
    if image.shape[2] == 1:
        return wide(image)[..., 0]
    r, g, b = np.moveaxis(wide(image), 2, 0)
    sums = 2989 * r + 5870 * g + 1140 * b
    return sums / 10000 if is_float(image) else sums // 10000


def mean_grey(image):
    """The mean grey in units of 1 / 65,536; floats are summed row by row."""
    greys = grey(image).ravel()
    return np.cumsum(greys)[-1] / len(greys) * 65536 if is_float(image) else int(greys.sum()) * 65536 // len(greys)


def cut_off(values, image):
    """Clips values to the range of the image's type; floats have no limits."""
    return (values if is_float(image) else np.clip(values, 0, np.iinfo(image.dtype).max)).astype(image.dtype)


def by_channel(values, channels):
    """Expands a number for all channels to one for each."""
    values = np.array(values)
    if len(set(values.tolist())) == 1:
        return np.repeat(values[:1], channels)
    assert len(values) == channels
    return values


def blended(step, words, image, other):
    """Factor x image + (1 - factor) x other, in whole numbers; `other` in units of 1 / 65,536."""
    if not happens(words[0], step.p):
        return image
    low, high = int(max(0.0, 1 - step.magnitude) * 65536), int((1 + step.magnitude) * 65536)
    factor = low + below(words[1], high - low + 1)
    sums = factor * wide(image) * 65536 + (65536 - factor) * np.asarray(other, wide(image).dtype)
    return cut_off(sums / 2**32 if is_float(image) else sums >> 32, image)


def turned_hue(image, turn):
    """The hue turned by turn / 65,536 of the circle: to sixths by the definition of HSV, then back by a table of
    sixths."""
    values = wide(image)
    high, low = values.max(2), values.min(2)
    span = np.where(high > low, high - low, 1)
    r, g, b = np.moveaxis(values, 2, 0)
    divide = np.true_divide if is_float(image) else np.floor_divide
    from_red = divide((6 * span + g - b) * 65536, span) % (6 * 65536)
    from_green, from_blue = divide((2 * span + b - r) * 65536, span), divide((4 * span + r - g) * 65536, span)
    hue = np.where(r == high, from_red, np.where(g == high, from_green, from_blue)) + 6 * (65536 + turn)
    hue = hue % (6 * 65536)
    sixth = (hue // 65536).astype(int)
    part = divide((high - low) * (hue % 65536) + (0 if is_float(image) else 32768), 65536)
    rising, falling = low + part, high - part
    table = [
        (high, rising, low),
        (falling, high, low),
        (low, high, rising),
        (low, falling, high),
        (rising, low, high),
        (high, low, falling),
    ]
    out = np.stack([np.choose(sixth, [row[c] for row in table]) for c in range(3)], axis=2)
    return np.where((high > low)[..., None], out, values).astype(image.dtype)


def blurred(image, size, sigma):
    radius = size // 2
    bell = np.exp(-0.5 * np.arange(-radius, radius + 1) ** 2 / sigma**2)
    weights = (bell / bell.sum() * 65536 + 0.5).astype(np.int64)
    weights[radius] = 65536 - (weights.sum() - weights[radius])
    padded = np.pad(wide(image), ((radius, radius), (radius, radius), (0, 0)), mode="reflect")
    rows = summed(np.moveaxis(padded, 1, 0), weights)
    rows = rows / 65536 if is_float(image) else (rows + 128) >> 8
    sums = summed(np.moveaxis(rows, 1, 0), weights)
    return (sums / 65536 if is_float(image) else (sums + 2**23) >> 24).astype(image.dtype)


def summed(padded, weights):
    """The weighted sum along the first axis, from the middle outwards: floats are rounded in that order."""
    radius, size = len(weights) // 2, padded.shape[0] - len(weights) + 1
    sums = weights[radius] * padded[radius : radius + size]
    for i in range(1, radius + 1):
        before, after = (padded[first : first + size] for first in (radius - i, radius + i))
        sums = sums + weights[radius + i] * (before + after)
    return sums


RAND_CHANGES = (
    "Identity",
    "ShearX",
    "ShearY",
    "TranslateX",
    "TranslateY",
    "Rotate",
    "Brightness",
    "Color",
    "Contrast",
    "Sharpness",
    "Posterize",
    "Solarize",
    "AutoContrast",
    "Equalize",
)


def rand_change(words):
    """The name of a round's change, and its direction."""
    return RAND_CHANGES[below(words[0], len(RAND_CHANGES))], -1 if words[1] >> 31 else 1


def warped(image, matrix, shift, pivot, fill):
    """The nearest pixel of where `matrix` (in 1 / 65,536) takes each pixel's centre, seen from the pivot (x, y)."""
    height, width = image.shape[:2]
    y, x = np.mgrid[:height, :width] + 0.5
    (a, b), (c, d) = np.array(matrix) / 65536
    from_x = np.floor(a * (x - pivot[0]) + b * (y - pivot[1]) + pivot[0] + shift[0]).astype(int)
    from_y = np.floor(c * (x - pivot[0]) + d * (y - pivot[1]) + pivot[1] + shift[1]).astype(int)
    inside = (from_x >= 0) & (from_x < width) & (from_y >= 0) & (from_y < height)
    out = image[np.clip(from_y, 0, height - 1), np.clip(from_x, 0, width - 1)]
    return np.where(inside[..., None], out, np.asarray(fill, np.uint8)).astype(np.uint8)


def mixed(image, factor, other):
    """factor x image + (1 - factor) x other, both in units of 1 / 65,536."""
    sums = factor * image.astype(np.int64) * 65536 + (65536 - factor) * np.asarray(other, np.int64)
    return np.clip(sums >> 32, 0, 255).astype(np.uint8)


def smoothed(image):
    """Smoothed with the weights 1 and, in the middle, 5; the edge stays as it is."""
    out, values = image.astype(np.int64), image.astype(np.int64)
    if min(image.shape[:2]) < 3:
        return out
    height, width = image.shape[0] - 2, image.shape[1] - 2
    sums = sum(values[i : i + height, j : j + width] for i in range(3) for j in range(3))
    out[1:-1, 1:-1] = np.floor((sums + 4 * values[1:-1, 1:-1]) / 13 + 0.5).astype(np.int64)
    return out


def stretched(channel):
    low, high = int(channel.min()), int(channel.max())
    return channel if low == high else (255 * (channel.astype(np.int64) - low) // (high - low)).astype(np.uint8)


def equalized(channel):
    counts = np.bincount(channel.ravel(), minlength=256)
    step = int(counts.sum() - counts[channel.max()]) // 255
    if step == 0:
        return channel
    less = np.concatenate([[0], np.cumsum(counts)[:-1]])
    return np.minimum((less + step // 2) // step, 255).astype(np.uint8)[channel]


def rand_changed(image, change, sign, magnitude, bins, fill):
    """One change of RandAugment."""
    height, width = image.shape[:2]
    share = fractions.Fraction(magnitude, bins - 1)
    one, factor = 65536, 65536 + sign * int(share * 9 / 10 * 65536)
    shear = sign * int(share * 3 / 10 * 65536)
    if change == "ShearX":
        return warped(image, ((one, shear), (0, one)), (0, 0), (0, 0), fill)
    if change == "ShearY":
        return warped(image, ((one, 0), (shear, one)), (0, 0), (0, 0), fill)
    if change == "TranslateX":
        return warped(image, ((one, 0), (0, one)), (-sign * int(share * 150 * width / 331), 0), (0, 0), fill)
    if change == "TranslateY":
        return warped(image, ((one, 0), (0, one)), (0, -sign * int(share * 150 * height / 331)), (0, 0), fill)
    if change == "Rotate":
        sine, cosine = (int(f(np.pi / 6 * float(share)) * 65536 + 0.5) for f in (np.sin, np.cos))
        turn = ((cosine, -sign * sine), (sign * sine, cosine))
        return warped(image, turn, (0, 0), (width / 2, height / 2), fill)
    if change == "Posterize":
        return image & (0xFF << round(4 * share) & 0xFF)
    if change == "Solarize":
        return np.where(image >= 255 * (1 - float(share)) - 1e-9, 255 - image, image)
    if change in ("AutoContrast", "Equalize"):
        remade = stretched if change == "AutoContrast" else equalized
        return np.stack([remade(image[..., c]) for c in range(3)], axis=2)
    others = {
        "Brightness": lambda: 0,
        "Color": lambda: grey(image)[..., None] * 65536,
        "Contrast": lambda: int(grey(image).sum()) * 65536 // (height * width),
        "Sharpness": lambda: smoothed(image) * 65536,
    }
    if change not in others:
        return image
    out = mixed(image, factor, others[change]())
    if change == "Sharpness":
        whole = image.copy()
        whole[1:-1, 1:-1] = out[1:-1, 1:-1]
        return whole
    return out


def rectangle(words, scale, ratio, size):
    """(y, x, height, width), or None if the drawn rectangle does not fit."""
    shares = [word / 2**32 for word in words]
    area = size[0] * size[1] * (scale[0] + (scale[1] - scale[0]) * shares[0])
    shape = np.exp(np.log(ratio[0]) + (np.log(ratio[1]) - np.log(ratio[0])) * shares[1])
    width, height = round(np.sqrt(area * shape)), round(np.sqrt(area / shape))
    if not (1 <= width <= size[1] and 1 <= height <= size[0]):
        return None
    return below(words[2], size[0] - height + 1), below(words[3], size[1] - width + 1), height, width


def filled(step, image, place):
    y, x, height, width = place
    image = image.copy()
    image[y : y + height, x : x + width] = by_channel(step.fill, image.shape[2]).astype(image.dtype)
    return image


def apply_random(step, image, words):
    """Applies the operations that do nothing when they are neutral."""
    kind, size = step.operation, image.shape[:2]
    if kind == "RandomVerticalFlip":
        return image[::-1] if happens(words[0], step.flip_prob) else image
    if kind == "RandomContrast":
        return blended(step, words, image, mean_grey(image))
    if kind == "RandomSaturation":
        return blended(step, words, image, grey(image)[..., None] * 65536)
    if kind == "RandomErasing":
        found = (rectangle(words.again(i), step.scale, step.ratio, size) for i in range(1, 11))
        place = next(filter(None, found), None) if happens(words[0], step.p) else None
        return filled(step, image, place) if place else image
    if kind == "Cutout":
        rows, columns = step.crop_size
        place = below(words[0], size[0] - rows + 1), below(words[1], size[1] - columns + 1)
        return filled(step, image, (*place, rows, columns))
    if not happens(words[0], step.p):
        return image
    if kind == "RandomHue":
        most = int(step.magnitude * 65536)
        return turned_hue(image, below(words[1], 2 * most + 1) - most)
    if kind == "RandomGrayscale":
        return np.repeat(grey(image)[..., None], 3, axis=2).astype(image.dtype)
    if kind == "Solarization":
        return np.where(image >= step.threshold, 255 - image, image)
    assert kind == "GaussianBlur"
    low, high = step.sigma
    sigma = (1 + int((low + (high - low) * words[1] / 2**32) * 65536)) / 65536
    return blurred(image, step.kernel_size, sigma)


def padded(image, padding, step):
    if step.fill == "reflect":
        return np.pad(image, ((padding, padding), (padding, padding), (0, 0)), mode="reflect")
    out = np.empty((image.shape[0] + 2 * padding, image.shape[1] + 2 * padding, image.shape[2]), image.dtype)
    out[:] = by_channel(step.fill, image.shape[2]).astype(image.dtype)
    out[padding : padding + image.shape[0], padding : padding + image.shape[1]] = image
    return out


def apply(step, image, words, epoch, evaluate):
    height, width = image.shape[:2]
    if step.operation == "RandomHorizontalFlip":
        return image[:, ::-1] if not evaluate and (words[0] >> 8) / 2**24 < np.float32(step.flip_prob) else image
    if step.operation == "AlternatingFlip":
        return image[:, ::-1] if not evaluate and (words[0] >> 31) ^ (epoch & 1) else image
    if step.operation == "RandomTranslate":
        p = step.padding
        y, x = (p, p) if evaluate else (below(words[0], 2 * p + 1), below(words[1], 2 * p + 1))
        return padded(image, p, step)[y : y + height, x : x + width]
    if step.operation == "RandomCrop":
        rows, columns = step.size
        image = padded(image, step.padding, step)
        room = image.shape[0] - rows + 1, image.shape[1] - columns + 1
        y, x = ((r - 1) // 2 for r in room) if evaluate else (below(w, r) for w, r in zip(words, room, strict=False))
        return image[y : y + rows, x : x + columns]
    if step.operation == "RandomBrightness":
        if evaluate or (words[0] >> 8) / 2**24 >= np.float32(step.p):
            return image
        low, high = int(max(0.0, 1 - step.magnitude) * 65536), int((1 + step.magnitude) * 65536)
        factor = (low + below(words[1], high - low + 1)) / 65536
        return cut_off(factor * image.astype(np.float64), image)
    return image if evaluate else apply_random(step, image, words)


def to_bfloat16(values):
    """float64 to bfloat16 bits: the nearest of the two neighbours, ties to the even one."""
    values = np.asarray(values, np.float64)
    high = (values.astype(np.float32).view(np.uint32) >> 16).astype(np.uint32)
    candidates = np.stack([high - 1, high, high + 1])  # the answer is one of them, whatever float32 rounding did
    wide = (candidates << 16).astype(np.uint32).view(np.float32).astype(np.float64)
    off = np.abs(wide - values)
    off[~np.isfinite(off)] = np.inf
    best = off.min(0)
    even = np.where((off == best) & (candidates % 2 == 0), 0, 1)
    ranked = np.lexsort(np.stack([even, off]).reshape(2, 3, -1), axis=0)[0]
    flat = candidates.reshape(3, -1)[ranked, np.arange(flat_size(values))]
    zero = values.reshape(-1) == 0
    return np.where(zero, 0, flat).astype(np.uint16).reshape(values.shape)


def flat_size(values):
    return int(np.prod(values.shape))


def rounded(values, dtype):
    return to_bfloat16(values) if dtype == "bfloat16" else values.astype(dtype)


def widened(values, dtype):
    if dtype == "bfloat16":
        return (values.astype(np.uint32) << 16).view(np.float32).astype(np.float64)
    return values.astype(np.float64)


def pipeline(steps, image, key, number=0, evaluate=False):
    """One image (H, W, channels) of uint8, uint16 or float32 through a list of transforms."""
    seen, dtype, channels = {}, str(image.dtype), image.shape[2]
    for step in steps:
        if isinstance(step, tf.RandAugment):
            first = seen.get(step.operation, 0)
            seen[step.operation] = first + step.num_ops
            for i in range(0 if evaluate else step.num_ops):
                change = rand_change(draws(step, first + i, number, key))
                image = rand_changed(image, *change, step.magnitude, step.num_magnitude_bins, step.fill)
        elif isinstance(step, tf.ImageOperation):
            occurrence = seen.get(step.operation, 0)
            seen[step.operation] = occurrence + 1
            if dtype == "bfloat16":  # only holes get here
                step = copy.copy(step)
                step.fill = tuple(to_bfloat16(np.array(step.fill)).tolist())
            image = apply(step, image, draws(step, occurrence, number, key), key[1], evaluate)
        elif isinstance(step, tf.NormalizeImage):
            mean, std = by_channel(step.mean, channels), by_channel(step.std, channels)
            image = rounded((widened(image, dtype) - mean) / std, step.type)
            dtype = step.type
        elif isinstance(step, tf.Convert):
            image = rounded(widened(image, dtype), step.target_dtype)
            dtype = step.target_dtype
        elif isinstance(step, tf.ToTorchImage):
            image = image.transpose(2, 0, 1)
    return image
