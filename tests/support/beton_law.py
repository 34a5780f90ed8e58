"""What a reader must refuse when it opens a .beton file, written a second time from the specification alone
(BETON_FORMAT.md, sections 3 to 6 and 9; docs/FORMAT.md), in plain Python. It tells whether a file is wrong, not where;
it does not look at the data pages or the extension block."""

import math
import struct

from beton_model import DATALESS, DESCRIPTOR, ENTRY, HEADER, ITEM_BYTES, TYPES, layout, round_up

KINDS = {number: kind for kind, number in TYPES.items()}
MOST = 1 << 64
TEXT_MAX = 760


class Refused(Exception):
    pass


def require(holds, reason):
    if not holds:
        raise Refused(reason)


def name_of(raw):
    name = raw.split(b"\0")[0]
    require(name and all(0x20 <= byte <= 0x7E for byte in name), "a name")
    require(not raw[len(name) :].strip(b"\0"), "bytes behind a name")
    return name


def array_bytes(raw):
    """The bytes of each value of an array field; 0 if a side is 0."""
    sides = struct.unpack_from("<32Q", raw, 17)
    length = struct.unpack_from("<Q", raw, 17 + 256)[0]
    require(length <= TEXT_MAX, "the length of a dtype")
    text = bytes(raw[17 + 264 : 17 + 264 + length])
    items = {f'[["", "{code}"]]'.encode(): size for code, size in ITEM_BYTES.items()}
    require(text in items, "a dtype")
    require(items[text] * math.prod(side for side in sides if side) < MOST, "a shape")
    while len(sides) > 1 and sides[-1] == 0:
        sides = sides[:-1]
    return items[text] * math.prod(sides)


def fields_of(data, count):
    """(kind, bytes of an array's value) of each field."""
    fields, names = [], set()
    for at in range(HEADER, HEADER + count * DESCRIPTOR, DESCRIPTOR):
        raw = data[at : at + DESCRIPTOR]
        name = name_of(raw[1:17])
        require(raw[0] in KINDS, "a type")
        require(name not in names, "a name twice")
        names.add(name)
        kind = KINDS[raw[0]]
        fields.append((kind, array_bytes(raw) if kind in ("array", "tensor") else None))
    return fields


def location(data, at, kind, array):
    """(pointer, bytes) of a value; the bytes are None if only the table states them."""
    if kind == "image":
        mode, width, height, pointer = struct.unpack_from("<BHHQ", data, at)
        require(mode <= 1, "an image's mode")
        require(width and height, "an image without pixels")
        return pointer, width * height * 3 if mode else None
    if kind in ("bytes", "json"):
        return struct.unpack_from("<QQ", data, at)
    return struct.unpack_from("<Q", data, at)[0], array


def regions_of(data, table, first, page, samples):
    """Pointer -> (sample, size) of the entries that are not empty."""
    found = {}
    for at in range(table, len(data) - ENTRY + 1, ENTRY):
        sample, pointer, size = struct.unpack_from("<QQQ", data, at)
        if size == 0:
            continue
        require(sample < samples, "an entry's sample")
        require(pointer >= first and pointer + size <= table, "a region outside of the pages")
        require(pointer // page == (pointer + size - 1) // page, "a region across pages")
        require(pointer not in found, "a pointer twice")
        found[pointer] = sample, size
    end = 0
    for pointer in sorted(found):
        require(pointer >= end, "an overlap")
        end = pointer + found[pointer][1]
    return found


def check_records(locations, regions):
    """Checks that every value has its region, and every region a value; an empty value may have a byte of its own."""
    used, reserved = set(), set()
    for sample, pointer, size in locations:
        owner, there = regions.get(pointer, (None, 0))
        if size == 0:
            reserved |= {pointer} if (owner, there) == (sample, 1) else set()
            continue
        require(owner is not None, "a pointer without a region")
        require(owner == sample, "another sample's region")
        require(size in (None, there), "two sizes")
        require(pointer not in used, "a region of two values")
        used.add(pointer)
    require(used | reserved == set(regions), "a region without a value")


def check(data):
    require(len(data) >= HEADER, "no header")
    version, count, page, samples, table = struct.unpack_from("<HHIQQ", data)
    require(version == 2, "the version")
    require(table != 0, "unfinished")
    require(page and page & (page - 1) == 0, "the page size")
    require(count, "no fields")
    metadata = HEADER + count * DESCRIPTOR
    require(metadata <= len(data), "cut descriptors")
    fields = fields_of(data, count)
    offsets, record = layout([kind for kind, _ in fields])
    end = metadata + samples * record
    require(end <= table <= len(data), "where records or table end")
    owning = [(kind, array, offset) for (kind, array), offset in zip(fields, offsets, strict=True)]
    owning = [field for field in owning if field[0] not in DATALESS]
    require((len(data) - table) // ENTRY == samples * len(owning), "the number of entries")
    require(owning or table == end, "a table without data")
    regions = regions_of(data, table, round_up(end, page), page, samples)
    locations = [
        (sample, *location(data, metadata + sample * record + offset, kind, array))
        for sample in range(samples)
        for kind, array, offset in owning
    ]
    check_records(locations, regions)


def reason_to_refuse(data):
    """A few words, or None if the file should be opened."""
    try:
        check(data)
    except Refused as refused:
        return str(refused)
    return None
