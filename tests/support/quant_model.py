"""The quantiser in NumPy float32, written from docs/WIRE.md alone: the independent reference of the tests."""

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


def magnitude_mean(x):
    padded = np.zeros(-(-len(x) // 32) * 32, F)
    padded[: len(x)] = np.abs(x)
    partial = np.zeros(32, F)
    with np.errstate(over="ignore"):
        for row in padded.reshape(-1, 32):
            partial = partial + row
        for width in (16, 8, 4, 2, 1):
            partial = partial[:width] + partial[width:]
    return partial[0] / F(len(x)) if np.isfinite(partial[0]) else F(np.nan)


def spikes_of(x, count):
    """Indices of the greatest magnitudes, the earlier of equals, in index order."""
    magnitude = x.view(np.uint32) & np.uint32(0x7FFFFFFF)
    return np.sort(np.argsort(-magnitude.astype(np.int64), kind="stable")[:count])


def quantize_bucket(x, spec, uniform):
    """(unit or mean, min, max, codes, spike entries) of float32 elements."""
    spikes = np.zeros((spec["spikes"], 2), np.uint16)
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
    bits, bucket_size=1024, dtype="float32", codec="maxmin", rounding="nearest", half_metadata=False, spikes=None
):
    if spikes is None:
        spikes = min(256, -(-bucket_size // 128)) if codec == "maxmin_spikes" else 0
    return {"bits": bits, "bucket_size": bucket_size, "dtype": dtype, "codec": codec, "rounding": rounding,
                "half_metadata": half_metadata, "spikes": spikes}  # fmt: skip


def padded(parts):
    data = b"".join(parts)
    return data + bytes(-len(data) % 16)


def nan_as(value, dtype):
    return from_float32(np.array([value], F), dtype).tobytes()


def quantize(x, spec, kind=None, seed=0, call=0, rank=0, quad=0):
    """The piece on the wire as bytes. `x` in `kind` (default the spec's dtype; bfloat16 as uint16)."""
    size, bits = spec["bucket_size"], spec["bits"]
    x = to_float32(np.ascontiguousarray(x).reshape(-1), kind or spec["dtype"])
    metadata, entries, codes = [], [], []
    for b, start in enumerate(range(0, len(x), size)):
        bucket = np.ascontiguousarray(x[start : start + size])
        uniform = None
        if spec["rounding"] == "stochastic":
            uniform = uniforms(len(bucket), quad + b * ((size + 3) // 4), seed, call, rank)
        unit, mn, mx, code, spike = quantize_bucket(bucket, spec, uniform)
        values = [unit] if spec["codec"] == "sign" else [mn, mx] if spec["half_metadata"] else [unit, mn]
        metadata += [nan_as(v, spec["dtype"] if spec["half_metadata"] else "float32") for v in values]
        entries.append(spike.astype("<u2").tobytes())
        codes.append(pack(code, bits).tobytes())
    return padded(metadata + entries) + padded(codes)


def read_metadata(data, spec, b):
    """(unit, min) of bucket b."""
    width = 2 if spec["half_metadata"] else 4
    count = 1 if spec["codec"] == "sign" else 2
    kind = spec["dtype"] if spec["half_metadata"] else "float32"
    raw = data[b * count * width : (b + 1) * count * width]
    values = to_float32(np.frombuffer(raw, {"float32": "<f4", "float16": "<f2", "bfloat16": "<u2"}[kind]), kind)
    if not np.isfinite(values).all():
        return F(np.nan), F(np.nan)
    if spec["codec"] == "sign":
        return F(-2) * values[0], values[0]
    if spec["half_metadata"]:
        return grid(values[0], values[1], spec["bits"])[:2]
    return values[0], values[1]


def dequantize32(data, spec, elems):
    """The decoded float32 values, before accumulation and rounding."""
    size, bits = spec["bucket_size"], spec["bits"]
    buckets = -(-elems // size)
    pair = (1 if spec["codec"] == "sign" else 2) * (2 if spec["half_metadata"] else 4)
    entries = buckets * pair
    at = entries + buckets * spec["spikes"] * 4
    at += -at % 16
    out = np.empty(elems, F)
    for b in range(buckets):
        n = min(size, elems - b * size)
        unit, mn = read_metadata(data, spec, b)
        taken = (n * bits + 7) // 8
        code = unpack(np.frombuffer(data[at : at + taken], np.uint8), bits, n)
        at += taken
        if np.isnan(unit):
            out[b * size : b * size + n] = np.nan
            continue
        values = mn + unit * code.astype(F)
        raw = data[entries + b * spec["spikes"] * 4 : entries + (b + 1) * spec["spikes"] * 4]
        spike = np.frombuffer(raw, "<u2").reshape(-1, 2)[: min(n, spec["spikes"])]
        values[spike[:, 0]] = to_float32(spike[:, 1], "bfloat16")
        out[b * size : b * size + n] = values
    return out
