"""A plain model of a .beton writer, for tests of what reads: one page after the other, no threads, no cleverness."""

import io
import json
import struct
from pathlib import Path

import numpy as np

IDS = {"float": 0, "int": 1, "image": 2, "bytes": 3, "array": 4, "json": 5, "tensor": 6}
SIZES = {"float": (8, 8), "int": (8, 8), "image": (13, 1), "bytes": (16, 1), "array": (8, 8), "json": (16, 1),
         "tensor": (8, 8)}  # fmt: skip


def round_up(value, step):
    return -(-value // step) * step


def jpeg(pixels, quality=90):
    from PIL import Image

    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "JPEG", quality=quality)
    return out.getvalue()


def layout(kinds):
    offset, largest, offsets = 0, 1, []
    for kind in kinds:
        size, alignment = SIZES[kind]
        offset = round_up(offset, alignment)
        offsets.append(offset)
        offset += size
        largest = max(largest, alignment)
    return offsets, round_up(offset, largest)


def region_of(kind, value):
    """The bytes in the data pages."""
    if kind == "image":
        return value if isinstance(value, bytes) else value.tobytes()
    if kind == "json":
        return json.dumps(value).encode() + b"\0"
    return value if isinstance(value, bytes) else np.ascontiguousarray(value).tobytes()


def record_of(kind, value, pointer, size, sides):
    if kind == "int":
        return struct.pack("<q", value)
    if kind == "float":
        return struct.pack("<d", value)
    if kind == "image":
        height, width = sides if isinstance(value, bytes) else value.shape[:2]
        return struct.pack("<BHHQ", 0 if isinstance(value, bytes) else 1, width, height, pointer)
    if kind in ("bytes", "json"):
        return struct.pack("<QQ", pointer, size)
    return struct.pack("<Q", pointer)


def arguments(kind, value):
    if kind not in ("array", "tensor"):
        return bytes(1024)
    shape = list(value.shape) + [0] * (32 - value.ndim)
    text = json.dumps([["", value.dtype.str]]).encode()
    return (struct.pack("<32QQ", *shape, len(text)) + text).ljust(1024, b"\0")


def write(path, fields, page_size=1 << 21, sides=None):
    """`fields`: {name: (kind, list of values)}; an image is an array (raw) or JPEG bytes of size `sides`."""
    kinds = [kind for kind, _ in fields.values()]
    count = len(next(iter(fields.values()))[1])
    offsets, record_bytes = layout(kinds)
    metadata = 24 + 1041 * len(fields)
    data = round_up(metadata + count * record_bytes, page_size)
    records, pages, table = bytearray(count * record_bytes), bytearray(), []
    for i in range(count):
        regions = [region_of(k, v[i]) for k, v in fields.values() if k not in ("int", "float")]
        total = sum(map(len, regions))
        assert total <= page_size
        if total > page_size - len(pages) % page_size:
            pages += bytes(-len(pages) % page_size)
        for (kind, values), offset in zip(fields.values(), offsets, strict=True):
            pointer, size = data + len(pages), 0
            if kind not in ("int", "float"):
                region = region_of(kind, values[i])
                size = len(region)
                table.append((i, pointer, max(size, 1)))
                pages += region or b"\0"
            record = record_of(kind, values[i], pointer, size, sides)
            records[i * record_bytes + offset : i * record_bytes + offset + len(record)] = record
    pages += bytes(-len(pages) % page_size)
    descriptors = b"".join(
        struct.pack("<B16s", IDS[kind], name.encode()) + arguments(kind, values[0] if values else None)
        for name, (kind, values) in fields.items()
    )
    head = descriptors + bytes(records)
    table_at = data + len(pages) if table else metadata + len(records)
    gap = bytes(data - metadata - len(records)) if table else b""
    header = struct.pack("<HHIQQ", 2, len(fields), page_size, count, table_at)
    body = header + head + gap + bytes(pages) + b"".join(struct.pack("<QQQ", *entry) for entry in table)
    Path(path).write_bytes(body)
    return path
