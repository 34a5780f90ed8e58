"""A second implementation of the .beton format, from its specification alone, in plain Python, to compare the C core
with.

Nothing here is shared with the package. A field is (kind, name, argument): argument is (dtype text, shape) for array
and tensor, None otherwise. A value is an int, a float, bytes (bytes and json; json without its NUL), for image either
("raw", width, height, pixels) or ("jpg", width, height, stream), for array and tensor the elements' bytes.
"""

import math
import struct

TYPES = {"float": 0, "int": 1, "image": 2, "bytes": 3, "array": 4, "json": 5, "tensor": 6}
RECORDS = {
    "float": (8, 8),
    "int": (8, 8),
    "image": (13, 1),
    "bytes": (16, 1),
    "array": (8, 8),
    "json": (16, 1),
    "tensor": (8, 8),
}
DATALESS = ("int", "float")
ITEM_BYTES = {
    "|b1": 1,
    "|i1": 1,
    "|u1": 1,
    "<i2": 2,
    "<u2": 2,
    "<i4": 4,
    "<u4": 4,
    "<i8": 8,
    "<u8": 8,
    "<f2": 2,
    "<f4": 4,
    "<f8": 8,
    "<c8": 8,
    "<c16": 16,
}
HEADER, DESCRIPTOR, ENTRY = 24, 1041, 24


def round_up(value, unit):
    return -(-value // unit) * unit


def layout(kinds):
    """Record offsets and record size."""
    offsets, at, largest = [], 0, 1
    for kind in kinds:
        size, alignment = RECORDS[kind]
        at = round_up(at, alignment)
        offsets.append(at)
        at += size
        largest = max(largest, alignment)
    return offsets, round_up(at, largest)


def descriptor(kind, name, argument):
    arguments = b""
    if kind in ("array", "tensor"):
        dtype, shape = argument
        text = f'[["", "{dtype}"]]'.encode()
        arguments = b"".join(struct.pack("<Q", side) for side in (*shape, *[0] * (32 - len(shape))))
        arguments += struct.pack("<Q", len(text)) + text
    return struct.pack("<B16s1024s", TYPES[kind], name.encode(), arguments)


def region_of(kind, value):
    """The bytes in the data pages; None for fields without data."""
    if kind in DATALESS:
        return None
    if kind == "image":
        return value[3]
    return value + b"\0" if kind == "json" else value


def record_of(kind, value, pointer):
    if kind == "int":
        return struct.pack("<q", value)
    if kind == "float":
        return struct.pack("<d", value)
    if kind == "image":
        mode, width, height, _ = value
        return struct.pack("<BHHQ", int(mode == "raw"), width, height, pointer)
    if kind in ("bytes", "json"):
        return struct.pack("<QQ", pointer, len(region_of(kind, value)))
    return struct.pack("<Q", pointer)


def place(sizes, page):
    """Offsets of the samples' regions from the first page, and where the last one ends."""
    at, offsets = 0, []
    for sample in sizes:
        total = sum(sample)
        if at % page + total > page:
            at = round_up(at, page)
        offsets.append([at + sum(sample[:i]) for i in range(len(sample))])
        at += total
    return offsets, at


def write(fields, samples, page=2 << 20):
    """The file's bytes."""
    kinds = [kind for kind, _, _ in fields]
    record_offsets, record_bytes = layout(kinds)
    regions = [
        [region_of(kind, value) for kind, value in zip(kinds, sample, strict=True) if kind not in DATALESS]
        for sample in samples
    ]
    sizes = [[max(len(region), 1) for region in sample] for sample in regions]
    while any(sum(sample) > page for sample in sizes):
        page *= 2
    metadata = HEADER + DESCRIPTOR * len(fields)
    end = metadata + len(samples) * record_bytes
    offsets, used = place(sizes, page)
    data = round_up(end, page)
    table = data + round_up(used, page) if used else end
    out = bytearray(table)
    struct.pack_into("<HHIQQ", out, 0, 2, len(fields), page, len(samples), table)
    for i, field in enumerate(fields):
        out[HEADER + i * DESCRIPTOR : HEADER + (i + 1) * DESCRIPTOR] = descriptor(*field)
    entries = b""
    for s, sample in enumerate(samples):
        k = 0
        for kind, value, offset in zip(kinds, sample, record_offsets, strict=True):
            pointer = 0
            if kind not in DATALESS:
                pointer = data + offsets[s][k]
                out[pointer : pointer + len(regions[s][k])] = regions[s][k]
                entries += struct.pack("<QQQ", s, pointer, sizes[s][k])
                k += 1
            at = metadata + s * record_bytes + offset
            record = record_of(kind, value, pointer)
            out[at : at + len(record)] = record
    return bytes(out) + entries


def read_descriptor(raw):
    kind = {number: name for name, number in TYPES.items()}[raw[0]]
    name = raw[1:17].rstrip(b"\0").decode()
    if kind not in ("array", "tensor"):
        return kind, name, None
    shape = list(struct.unpack_from("<32Q", raw, 17))
    while len(shape) > 1 and shape[-1] == 0:
        shape.pop()
    length = struct.unpack_from("<Q", raw, 17 + 256)[0]
    text = raw[17 + 264 : 17 + 264 + length].decode()
    return kind, name, (text.removeprefix('[["", "').removesuffix('"]]'), tuple(shape))


def read(data):
    """(fields, samples, page size) of a file in order."""
    version, count, page, num_samples, table = struct.unpack_from("<HHIQQ", data, 0)
    assert version == 2
    fields = [read_descriptor(data[HEADER + i * DESCRIPTOR : HEADER + (i + 1) * DESCRIPTOR]) for i in range(count)]
    offsets, record_bytes = layout([kind for kind, _, _ in fields])
    sizes = {}
    for at in range(table, len(data) - ENTRY + 1, ENTRY):
        _, pointer, size = struct.unpack_from("<QQQ", data, at)
        if size:
            sizes[pointer] = size
    samples = []
    for s in range(num_samples):
        base = HEADER + DESCRIPTOR * count + s * record_bytes
        samples.append(
            tuple(
                read_value(data, kind, argument, base + offset, sizes)
                for (kind, _, argument), offset in zip(fields, offsets, strict=True)
            )
        )
    return fields, samples, page


def read_value(data, kind, argument, at, sizes):
    if kind == "int":
        return struct.unpack_from("<q", data, at)[0]
    if kind == "float":
        return struct.unpack_from("<d", data, at)[0]
    if kind == "image":
        mode, width, height, pointer = struct.unpack_from("<BHHQ", data, at)
        size = width * height * 3 if mode else sizes[pointer]
        return "raw" if mode else "jpg", width, height, data[pointer : pointer + size]
    if kind in ("bytes", "json"):
        pointer, size = struct.unpack_from("<QQ", data, at)
        value = data[pointer : pointer + size] if size else b""
        return value[:-1] if kind == "json" else value
    pointer = struct.unpack_from("<Q", data, at)[0]
    dtype, shape = argument
    return data[pointer : pointer + ITEM_BYTES[dtype] * math.prod(shape)]


FIELDS = [
    ("image", "img", None),
    ("int", "n", None),
    ("bytes", "b", None),
    ("json", "doc", None),
    ("array", "arr", ("<f4", (2, 2))),
]


def samples(count):
    """Samples of these fields, no two of them alike."""
    return [
        (("raw", 2, 3, bytes(range(s, s + 18))), s, b"bytes"[: s + 1], b'{"s": %d}' % s, bytes(16))
        for s in range(count)
    ]


def table_of(data):
    """Where the allocation table begins."""
    return struct.unpack_from("<Q", data, 16)[0]
