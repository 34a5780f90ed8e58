"""The quantiser in NumPy float32, written from docs/WIRE.md alone: an independent reference for the tests."""

import numpy as np

F = np.float32
NAN32 = np.uint32(0x7FC00000)


def philox(k0, k1, counters):
    """Philox4x32-10 of an array of counters, uint64 [n, 4] holding 32-bit words."""
    c = [counters[:, i].astype(np.uint64) for i in range(4)]
    low = np.uint64(0xFFFFFFFF)
    for _ in range(10):
        p0, p1 = np.uint64(0xD2511F53) * c[0], np.uint64(0xCD9E8D57) * c[2]
        c = [
            (p1 >> np.uint64(32)) ^ c[1] ^ np.uint64(k0),
            p1 & low,
            (p0 >> np.uint64(32)) ^ c[3] ^ np.uint64(k1),
            p0 & low,
        ]
        k0, k1 = (k0 + 0x9E3779B9) & 0xFFFFFFFF, (k1 + 0xBB67AE85) & 0xFFFFFFFF
    return np.stack(c, 1)


def uniforms(elems, quad, seed, call, rank):
    n = (elems + 3) // 4
    item = np.arange(n, dtype=np.uint64) + np.uint64(quad)
    counters = np.stack(
        [
            item & np.uint64(0xFFFFFFFF),
            item >> np.uint64(32),
            np.full(n, call, np.uint64),
            np.full(n, 3 << 16 | rank, np.uint64),
        ],
        1,
    )
    words = philox(seed & 0xFFFFFFFF, seed >> 32, counters).reshape(-1)[:elems]
    return (words >> np.uint64(8)).astype(F) * F(2.0**-24)


def to_float32(x, dtype):
    if dtype == "bfloat16":
        return (x.astype(np.uint32) << np.uint32(16)).view(F)
    return x.astype(F)


def from_float32(y, dtype):
    """Rounds to the type, canonical NaN; bfloat16 as uint16."""
    y = np.ascontiguousarray(y, F)
    bits = y.view(np.uint32)
    if dtype == "bfloat16":
        rounded = ((bits.astype(np.uint64) + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
        return np.where(np.isnan(y), np.uint16(0x7FC0), rounded)
    if dtype == "float16":
        with np.errstate(over="ignore"):
            half = y.astype(np.float16).view(np.uint16)
        return np.where(np.isnan(y), np.uint16(0x7E00), half).view(np.float16)
    return np.where(np.isnan(y), NAN32, bits).view(F)


def pack(codes, bits):
    """Codes as a little-endian bit stream, zero bits at the end."""
    planes = (codes[:, None] >> np.arange(bits, dtype=codes.dtype)) & 1
    return np.packbits(planes.astype(np.uint8).reshape(-1), bitorder="little")


def unpack(data, bits, elems):
    planes = np.unpackbits(data, bitorder="little")[: elems * bits].reshape(elems, bits).astype(np.int64)
    return (planes << np.arange(bits)).sum(1)


def grid(mn, mx, bits):
    mn, mx = F(mn) + F(0), F(mx) + F(0)
    unit = F(mx - mn) / F(2**bits - 1)
    return (F(0) if unit < F(2.0**-126) else unit), mn, mx


def codes_of(x, unit, mn, bits, uniform):
    levels = 2**bits - 1
    if unit == 0:
        return np.zeros(len(x), np.int64)
    with np.errstate(all="ignore"):
        t = (x - mn) * (F(1) / unit)
        if uniform is None:
            u = t + F(0.5)
            return np.minimum(np.trunc(u), levels).astype(np.int64)
        c0 = np.trunc(t)
        return np.minimum(c0 + (uniform < t - c0), levels).astype(np.int64)


def partial_sums(products):
    partial = np.zeros(32, F)
    with np.errstate(all="ignore"):
        for row in products.reshape(-1, 32):
            partial = partial + row
        for width in (16, 8, 4, 2, 1):
            partial = partial[:width] + partial[width:]
    return partial[0]


def magnitude_mean(x):
    padded = np.zeros(-(-len(x) // 32) * 32, F)
    padded[: len(x)] = np.abs(x)
    total = partial_sums(padded)
    return total / F(len(x)) if np.isfinite(total) else F(np.nan)


def spikes_of(x, count):
    """Indices of the greatest magnitudes, of equal ones the earlier, in index order."""
    magnitude = x.view(np.uint32) & np.uint32(0x7FFFFFFF)
    return np.sort(np.argsort(-magnitude.astype(np.int64), kind="stable")[:count])


LEVELS = {
    1: [0.7978846],
    2: [0.45278004, 1.5104176],
    3: [0.24509418, 0.7560053, 1.3439093, 2.1519456],
    4: [0.12839504, 0.3880483, 0.65675914, 0.94234043, 1.2562312, 1.6180464, 2.0690172, 2.7325895],
}


def levels_of(bits):
    half = np.array(LEVELS[bits], F)
    return np.concatenate([-half[::-1], half])


def values_of(spec, elems):
    """How many values a run of elements has when its terms are added: more only if a rotated bucket is padded."""
    size = spec["bucket_size"]
    rest = elems % size
    if spec["codec"] != "rotated" or rest == 0:
        return elems
    return elems - rest + max(32, 1 << (rest - 1).bit_length())


def signs(values, quad, seed, call):
    item = np.arange(-(-values // 128), dtype=np.uint64) + np.uint64(quad)
    same = [np.full(len(item), v, np.uint64) for v in (call, 7 << 16)]
    counters = np.stack([item & np.uint64(0xFFFFFFFF), item >> np.uint64(32), *same], 1)
    words = philox(seed & 0xFFFFFFFF, seed >> 32, counters).astype(np.uint32).reshape(-1)
    return (words[:, None] >> np.arange(32, dtype=np.uint32) & np.uint32(1)).astype(bool).reshape(-1)[:values]


def hadamard(y):
    h = 1
    with np.errstate(all="ignore"):
        while h < len(y):
            pairs = y.reshape(-1, 2, h)
            y = np.stack([pairs[:, 0] + pairs[:, 1], pairs[:, 0] - pairs[:, 1]], 1).reshape(-1)
            h *= 2
        return y * F(len(y) ** -0.5)


def runs_of(spec, elems, quad):
    """(first, end, quad) of each bucket."""
    size = spec["bucket_size"]
    for b, first in enumerate(range(0, elems, size)):
        yield first, min(first + size, elems), quad + b * ((size + 3) // 4)


def enter(x, spec, seed=0, call=0, quad=0):
    """The values of float32 elements that start at a bucket."""
    if spec["codec"] != "rotated":
        return x
    parts = [np.empty(0, F)]
    for first, end, at in runs_of(spec, len(x), quad):
        y = np.zeros(values_of(spec, end - first), F)
        y[: end - first] = x[first:end]
        y = hadamard(np.where(signs(len(y), at, seed, call), -y, y))
        if (x[first:end].view(np.uint32) & np.uint32(0x7FFFFFFF)).max() >= 0x5D800000:
            y[:] = np.nan
        parts.append(y)
    return np.concatenate(parts)


def leave(values, spec, elems, seed=0, call=0, quad=0):
    """The elements of values."""
    if spec["codec"] != "rotated":
        return values
    parts = [np.empty(0, F)]
    for first, end, at in runs_of(spec, elems, quad):
        y = hadamard(values[first : first + values_of(spec, end - first)])
        parts.append(np.where(signs(len(y), at, seed, call), -y, y)[: end - first])
    return np.concatenate(parts)


def quantize_rotated(y, spec):
    """(scale, codes) of the values of a bucket."""
    levels, zeros = levels_of(spec["bits"]), np.zeros(len(y), np.int64)
    with np.errstate(all="ignore"):
        q2 = partial_sums(y * y)
        if not np.isfinite(q2):
            return F(np.nan), zeros
        rms = np.sqrt(q2 / F(len(y)))
        if rms < F(2.0**-100):
            return F(0), zeros
        thresholds = (levels[:-1] + levels[1:]) * F(0.5)
        codes = (thresholds[None] < (y * (F(1) / rms))[:, None]).sum(1)
        return (rms if spec["scale"] == "mse" else q2 / partial_sums(y * levels[codes])), codes


def quantize_bucket(x, spec, uniform):
    """(unit, mean or scale, min, max, codes, spike entries) of float32 elements, or of rotated values."""
    spikes = np.zeros((spec["spikes"], 2), np.uint16)
    if spec["codec"] == "rotated":
        scale, codes = quantize_rotated(x, spec)
        return scale, scale, scale, codes, spikes
    zeros = np.zeros(len(x), np.int64)
    magnitude = (x.view(np.uint32) & np.uint32(0x7FFFFFFF)).max()
    if magnitude >= 0x7E000000:
        return F(np.nan), F(np.nan), F(np.nan), zeros, spikes
    if spec["codec"] == "sign":
        mean = magnitude_mean(x)
        return mean, mean, mean, (x < 0).astype(np.int64) if np.isfinite(mean) else zeros, spikes
    if spec["codec"] == "maxmin":
        unit, mn, mx = grid(x.min(), x.max(), spec["bits"])
        return unit, mn, mx, codes_of(x, unit, mn, spec["bits"], uniform), spikes
    at = spikes_of(x, min(len(x), spec["spikes"]))
    rest = np.delete(x, at)
    unit, mn, mx = grid(rest.min(), rest.max(), spec["bits"]) if len(rest) else (F(0), F(0), F(0))
    inner = x.copy()
    inner[at] = mn
    codes = codes_of(inner, unit, mn, spec["bits"], uniform)
    codes[at] = 0
    spikes[: len(at), 0] = at
    spikes[: len(at), 1] = from_float32(x[at], "bfloat16")
    return unit, mn, mx, codes, spikes


def complete(
    bits,
    bucket_size=1024,
    dtype="float32",
    codec="maxmin",
    rounding="nearest",
    half_metadata=False,
    spikes=None,
    scale="unbiased",
):
    if spikes is None:
        spikes = min(256, -(-bucket_size // 128)) if codec == "maxmin_spikes" else 0
    rotated = {"scale": scale} if codec == "rotated" else {}
    return {
        "bits": bits,
        "bucket_size": bucket_size,
        "dtype": dtype,
        "codec": codec,
        "rounding": rounding,
        "half_metadata": half_metadata,
        "spikes": spikes,
        **rotated,
    }


def metadata_values(spec):
    return 1 if spec["codec"] in ("sign", "rotated") else 2


def padded(parts):
    data = b"".join(parts)
    return data + bytes(-len(data) % 16)


def nan_as(value, dtype):
    return from_float32(np.array([value], F), dtype).tobytes()


def quantize(x, spec, kind=None, seed=0, call=0, rank=0, quad=0):
    """The piece on the wire as bytes. `x` in `kind` (default the spec's dtype; bfloat16 as uint16)."""
    x = to_float32(np.ascontiguousarray(x).reshape(-1), kind or spec["dtype"])
    return quantize_values(enter(x, spec, seed, call, quad), spec, len(x), seed, call, rank, quad)


def quantize_values(x, spec, elems, seed=0, call=0, rank=0, quad=0):
    """The same for values, which are those of `elems` elements."""
    metadata, entries, codes = [], [], []
    for first, end, at in runs_of(spec, elems, quad):
        bucket = np.ascontiguousarray(x[first : first + values_of(spec, end - first)])
        uniform = None
        if spec["rounding"] == "stochastic":
            uniform = uniforms(len(bucket), at, seed, call, rank)
        unit, mn, mx, code, spike = quantize_bucket(bucket, spec, uniform)
        values = [unit] if metadata_values(spec) == 1 else [mn, mx] if spec["half_metadata"] else [unit, mn]
        metadata += [nan_as(v, spec["dtype"] if spec["half_metadata"] else "float32") for v in values]
        entries.append(spike.astype("<u2").tobytes())
        codes.append(pack(code, spec["bits"]).tobytes())
    return padded(metadata + entries) + padded(codes)


def read_metadata(data, spec, b):
    """(unit, min) of bucket b; (NaN or 0, scale) with rotated."""
    width = 2 if spec["half_metadata"] else 4
    count = metadata_values(spec)
    kind = spec["dtype"] if spec["half_metadata"] else "float32"
    raw = data[b * count * width : (b + 1) * count * width]
    values = to_float32(np.frombuffer(raw, {"float32": "<f4", "float16": "<f2", "bfloat16": "<u2"}[kind]), kind)
    if not np.isfinite(values).all():
        return F(np.nan), F(np.nan)
    if spec["codec"] == "rotated":
        return F(0), values[0]
    if spec["codec"] == "sign":
        return F(-2) * values[0], values[0]
    if spec["half_metadata"]:
        return grid(values[0], values[1], spec["bits"])[:2]
    return values[0], values[1]


def dequantize_values(data, spec, elems):
    """The decoded float32 values, before accumulation."""
    bits, buckets = spec["bits"], -(-elems // spec["bucket_size"])
    entries = buckets * metadata_values(spec) * (2 if spec["half_metadata"] else 4)
    at = entries + buckets * spec["spikes"] * 4
    at += -at % 16
    out = np.empty(values_of(spec, elems), F)
    for b, (first, end, _) in enumerate(runs_of(spec, elems, 0)):
        n = values_of(spec, end - first)
        unit, mn = read_metadata(data, spec, b)
        taken = (n * bits + 7) // 8
        code = unpack(np.frombuffer(data[at : at + taken], np.uint8), bits, n)
        at += taken
        if np.isnan(unit):
            out[first : first + n] = np.nan
            continue
        with np.errstate(all="ignore"):
            values = levels_of(bits)[code] * mn if spec["codec"] == "rotated" else mn + unit * code.astype(F)
        raw = data[entries + b * spec["spikes"] * 4 : entries + (b + 1) * spec["spikes"] * 4]
        spike = np.frombuffer(raw, "<u2").reshape(-1, 2)[: min(n, spec["spikes"])]
        values[spike[:, 0]] = to_float32(spike[:, 1], "bfloat16")
        out[first : first + n] = values
    return out


def dequantize32(data, spec, elems, seed=0, call=0, quad=0):
    """The decoded float32 elements, before rounding."""
    return leave(dequantize_values(data, spec, elems), spec, elems, seed, call, quad)
