"""What the loader's image pipelines must give, operation by operation, in plain NumPy and Python integers."""

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
    """Fisher and Yates from the end; draw i uses half of a counter's four words."""
    items = list(items)
    for i in range(len(items) - 1, 0, -1):
        words = philox(seed, epoch, (offset + i) // 2, ORDER, draw)[2 * ((offset + i) % 2) :]
        other = ((words[1] << 32 | words[0]) * (i + 1)) >> 64
        items[i], items[other] = items[other], items[i]
    return items


def draws(step, occurrence, number, key):
    """The four words of an operation's draw for one image; key is (seed, epoch, sample)."""
    seed, epoch, sample = key
    if step.operation == "AlternatingFlip":
        epoch = 0
    return philox(seed, epoch, sample, AUGMENT, DRAW[step.operation] | occurrence << 6 | number << 10)


def padded(image, padding, step):
    if step.fill == "reflect":
        return np.pad(image, ((padding, padding), (padding, padding), (0, 0)), mode="reflect")
    out = np.empty((image.shape[0] + 2 * padding, image.shape[1] + 2 * padding, 3), image.dtype)
    out[:] = np.asarray(step.fill, image.dtype)
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
        return np.clip(factor * image.astype(np.float64), 0, 255).astype(np.uint8)
    if evaluate:
        return image
    rows, columns = step.crop_size
    y, x = below(words[0], height - rows + 1), below(words[1], width - columns + 1)
    image = image.copy()
    image[y : y + rows, x : x + columns] = np.asarray(step.fill, image.dtype)
    return image


def to_bfloat16(values):
    """float64 to bfloat16 bits: the nearest of the two neighbours, ties to the even one."""
    values = np.asarray(values, np.float64)
    high = (values.astype(np.float32).view(np.uint32) >> 16).astype(np.uint32)
    candidates = np.stack([high - 1, high, high + 1])  # one of them is it, whatever float32 rounding did
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
    """One image (H, W, 3) uint8 through a list of transforms."""
    seen, dtype = {}, "uint8"
    for step in steps:
        if isinstance(step, tf.ImageOperation):
            occurrence = seen.get(step.operation, 0)
            seen[step.operation] = occurrence + 1
            if dtype == "bfloat16":  # only holes come here
                fill = to_bfloat16(np.array(step.fill))
                step = tf.Cutout(step.crop_size)
                step.fill = tuple(fill.tolist())
            image = apply(step, image, draws(step, occurrence, number, key), key[1], evaluate)
        elif isinstance(step, tf.NormalizeImage):
            image = rounded((widened(image, dtype) - np.array(step.mean)) / np.array(step.std), step.type)
            dtype = step.type
        elif isinstance(step, tf.Convert):
            image = rounded(widened(image, dtype), step.target_dtype)
            dtype = step.target_dtype
        elif isinstance(step, tf.ToTorchImage):
            image = image.transpose(2, 0, 1)
    return image
