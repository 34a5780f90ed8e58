"""Hostile .beton files made by rules, each from a seed alone, with what they must read as.

`hostile_file(seed)` gives a File. Half of the rules break the structure, and `beton_law` tells whether it must be
refused; half insert a JPEG stream whose defects are known.
"""

import random
import struct
from dataclasses import dataclass

import beton_model as model
from crafted_jpegs import Jpeg, segment

PAGE = 4096
SMALL, LARGE = (0, 1, 2, 7), (1 << 16, 1 << 32, 1 << 40, 1 << 63, 1 << 64)
WRAPS = (*SMALL, *(number - 1 for number in LARGE), 1 << 31, 1 << 32, 1 << 63, (1 << 64) - 24)
LAYOUTS = (
    ("bytes",),
    ("json", "int"),
    ("int", "float"),
    ("image", "int"),
    ("array", "image", "bytes"),
    ("image", "int", "json", "tensor", "float", "bytes", "array"),
)
ARRAY, TEXT = ("array", "tensor"), ("bytes", "json")
ARRAYS = (("<f4", (2, 2)), ("|u1", (5,)), ("<i8", (1, 3, 1)), ("<c16", (2,)))


@dataclass
class File:
    rule: str
    data: bytes
    sound: bool | None = None  # the JPEG images: all are as they should be; one is not; unknown


class Victim:
    """A valid file, and where its parts are."""

    def __init__(self, rng, kinds=None):
        self.rng = rng
        kinds = kinds or rng.choice(LAYOUTS)
        self.fields = [
            (kind, f"f{i}", rng.choice(ARRAYS) if kind in ("array", "tensor") else None) for i, kind in enumerate(kinds)
        ]
        self.count = rng.randrange(1, 5)
        samples = [tuple(self.value(kind, argument) for kind, _, argument in self.fields) for _ in range(self.count)]
        self.data = bytearray(model.write(self.fields, samples, PAGE))
        self.offsets, self.record_bytes = model.layout(kinds)
        self.metadata = model.HEADER + model.DESCRIPTOR * len(self.fields)
        self.table = self.get(16)
        self.entries = (len(self.data) - self.table) // model.ENTRY
        self.kinds = set(kinds)
        self.owning = [i for i, kind in enumerate(kinds) if kind not in model.DATALESS]

    def value(self, kind, argument):
        rng = self.rng
        if kind == "int":
            return rng.randrange(-(1 << 63), 1 << 63)
        if kind == "float":
            return rng.choice((0.5, float("inf"), -0.0, 1e-310))
        if kind == "image":
            return "raw", 3, 2, rng.randbytes(18)
        if kind == "json":
            return rng.choice((b'{"a": 1}', b"null", b'"\xc3\xbc"', b"[1, 2]"))
        if kind == "bytes":
            return rng.randbytes(rng.randrange(1, 40))
        dtype, shape = argument
        bytes_of = model.ITEM_BYTES[dtype]
        for side in shape:
            bytes_of *= side
        return rng.randbytes(bytes_of)

    def get(self, at, form="<Q"):
        return struct.unpack_from(form, self.data, at)[0]

    def put(self, at, value, form="<Q"):
        bits = 8 * struct.calcsize(form)
        struct.pack_into(form, self.data, at, value % (1 << bits))

    def near(self, value):
        """A number close to it, or one that wraps."""
        return self.rng.choice((value + self.rng.randrange(-3, 4), value + PAGE, *WRAPS, (1 << 64) - value))

    def descriptor(self, kinds=()):
        """The descriptor of a random field, or of one of these kinds."""
        fields = [i for i, field in enumerate(self.fields) if field[0] in kinds or not kinds]
        return model.HEADER + self.rng.choice(fields) * model.DESCRIPTOR

    def entry(self):
        return self.table + self.rng.randrange(self.entries) * model.ENTRY

    def pointer(self, kinds=()):
        """(place of the pointer in a random record of one of these kinds, or of any; its field's kind)."""
        field = self.rng.choice([i for i in self.owning if self.fields[i][0] in kinds or not kinds])
        kind, sample = self.fields[field][0], self.rng.randrange(self.count)
        at = self.metadata + sample * self.record_bytes + self.offsets[field]
        return at + (5 if kind == "image" else 0), kind

    def entries_at(self, pointer):
        """Places of the entries with this pointer."""
        return [at for at in range(self.table, self.table + 24 * self.entries, 24) if self.get(at + 8) == pointer]


# ---- rules of the structure: each changes the victim in place ----


def header_numbers(v):
    at, form = v.rng.choice(((0, "<H"), (2, "<H"), (4, "<I"), (8, "<Q"), (8, "<Q"), (16, "<Q"), (16, "<Q")))
    v.put(at, v.near(v.get(at, form)), form)


def counts_that_overflow(v):
    v.put(8, (1 << 64) // v.record_bytes + v.rng.randrange(-2, 3))


def cut(v):
    edges = (0, 24, v.metadata, v.metadata + v.count * v.record_bytes, v.table, len(v.data))
    del v.data[max(0, v.rng.choice(edges) + v.rng.randrange(-25, 3)) :]


def longer(v):
    v.data += v.rng.randbytes(v.rng.choice((1, 23, 24, 25, 48, PAGE)))


def table_elsewhere(v):
    v.put(16, v.table + v.rng.choice((-24, -1, 1, 8, 24, 48)))


def names(v):
    at = v.descriptor() + 1
    choices = (b"", b"f0", b"f1", b"a\0b", b"\xff", b"a\x7f", b"\x1f", b"sixteen letters!", b" ", v.rng.randbytes(16))
    v.data[at : at + 16] = v.rng.choice(choices).ljust(16, b"\0")


def types(v):
    v.data[v.descriptor()] = v.rng.choice((*range(9), 254, 255))


def array_arguments(v):
    at = v.descriptor(ARRAY) + 17
    texts = (b'[["", "<f8"]]', b'[["", "|O"]]', b'[["a", "<f4"]]', b'[["", "<f4"]] ', b'[["", ">f4"]]', b"[]", b"")
    text = v.rng.choice(texts)
    if v.rng.random() < 0.4:
        v.put(at + 256, v.rng.choice((len(text), 760, 761, *WRAPS)))
    elif v.rng.random() < 0.4:
        v.put(at + 256, len(text))
        v.data[at + 264 : at + 264 + len(text)] = text
    else:
        v.put(at + 8 * v.rng.randrange(32), v.rng.choice((0, 1, 2, 1 << 32, 1 << 62, (1 << 64) - 1)))


def pointers(v):
    at, _ = v.pointer()
    v.put(at, v.near(v.get(at)))


def pointers_of_others(v):
    """Two values exchanged, or two at one region: duplicate ids."""
    first, second = v.pointer()[0], v.pointer()[0]
    one, other = v.get(first), v.get(second)
    v.put(first, other)
    if v.rng.random() < 0.5:
        v.put(second, one)


def sizes_of_records(v):
    at, kind = v.pointer(("bytes", "json", "image"))
    if kind == "image":
        v.put(at + v.rng.choice((-4, -2)), v.rng.choice((0, 1, 2, 3, 65535)), "<H")
    else:
        v.put(at + 8, v.near(v.get(at + 8)))


def image_modes(v):
    at, _ = v.pointer(("image",))
    v.data[at - 5] = v.rng.choice((0, 0, 1, 2, 255))


def entries(v):
    at = v.entry() + 8 * v.rng.randrange(3)
    v.put(at, v.near(v.get(at)))


def entries_exchanged(v):
    one, other = v.entry(), v.entry()
    first, second = bytes(v.data[one : one + 24]), bytes(v.data[other : other + 24])
    v.data[one : one + 24] = second
    if v.rng.random() < 0.3:
        v.data[other : other + 24] = first


def shuffled(v):
    """The entries of the table in random order, which must be readable."""
    rows = [bytes(v.data[at : at + 24]) for at in range(v.table, v.table + 24 * v.entries, 24)]
    v.rng.shuffle(rows)
    v.data[v.table : v.table + 24 * v.entries] = b"".join(rows)


def moved(v):
    """Record and entry agree, but the region overlaps another, crosses a page, or wraps."""
    at, _ = v.pointer()
    old = v.get(at)
    new = v.rng.choice((old + v.rng.randrange(-30, 30), v.near(old), v.table - 1, v.table - 20, PAGE - 1, 2 * PAGE - 2))
    for entry in v.entries_at(old):
        v.put(entry + 8, new)
    v.put(at, new)


def resized(v):
    """Record and entry have the same wrong size."""
    at, _ = v.pointer(TEXT)
    size = v.near(v.get(at + 8))
    for entry in v.entries_at(v.get(at)):
        v.put(entry + 16, size)
    v.put(at + 8, size)


def emptied(v):
    """A size of 0, in the record, in the table, or in both; or the byte that an empty value may have."""
    at, _ = v.pointer(TEXT)
    which = v.rng.randrange(4)
    for entry in v.entries_at(v.get(at)) if which != 0 else ():
        v.put(entry + 16, 1 if which == 3 else 0)
    if which != 1:
        v.put(at + 8, 0)


def text(v):
    """Text that is not JSON."""
    at, _ = v.pointer(("json",))
    place, size = v.get(at), v.get(at + 8)
    junk = v.rng.choice((b"[" * 64, b"\xff" * 64, b"nul\0" * 16, b"1" * 64, b'"\xed\xa0\x80"'.ljust(64), bytes(64)))
    v.data[place : place + size] = junk[:size]


def bits(v):
    """Flipped bits, in the whole file or before its data pages."""
    for _ in range(v.rng.randrange(1, 4)):
        at = v.rng.choice((v.rng.randrange(v.metadata + v.count * v.record_bytes), v.rng.randrange(len(v.data))))
        v.data[at] ^= 1 << v.rng.randrange(8)


def no_samples(v):
    v.put(8, 0)
    if v.rng.random() < 0.5:
        del v.data[v.table :]


ANY = {kind for kind in model.TYPES if kind not in model.DATALESS}
STRUCTURE = {  # with the kinds of fields of which the file must have one
    header_numbers: (),
    counts_that_overflow: (),
    cut: (),
    longer: (),
    table_elsewhere: (),
    names: (),
    types: (),
    bits: (),
    no_samples: (),
    array_arguments: ARRAY,
    pointers: ANY,
    pointers_of_others: ANY,
    sizes_of_records: ("bytes", "json", "image"),
    image_modes: ("image",),
    entries: ANY,
    entries_exchanged: ANY,
    shuffled: ANY,
    moved: ANY,
    resized: TEXT,
    emptied: TEXT,
    text: ("json",),
}


def structure(rng):
    rule = rng.choice(list(STRUCTURE))
    victim = Victim(rng)
    while STRUCTURE[rule] and not victim.kinds & set(STRUCTURE[rule]):
        victim = Victim(rng)
    rule(victim)
    return File(rule.__name__, bytes(victim.data))


# ---- rules of JPEG: (the stream, whether it is sound, the sides in the record if not those of the stream) ----


def sound_stream(rng):
    jpeg = Jpeg(rng.randrange(1, 70), rng.randrange(1, 40), rng.choice((1, 3)))
    kind = rng.randrange(5)
    if kind == 0:
        return jpeg.but(frame=0xC2)
    if kind == 1 and jpeg.components == 3:
        return jpeg.but(sampling=rng.choice((0x21, 0x22, 0x12, 0x41, 0x42, 0x31)))
    return jpeg.but(restart=rng.randrange(1, 9)) if kind == 2 else jpeg


def sound(rng):
    return sound_stream(rng).stream(), True


def many_scans(rng):
    scans = rng.choice((99, 100, 101, 250, 499, 500, 501, 502, 700, 880))
    components = 1 if scans > 500 else rng.choice((1, 3))
    return Jpeg(16, 16, components, 0xC2, scans=scans).stream(), scans <= 500


def wrong_sides(rng):
    jpeg = sound_stream(rng)
    width, height = rng.choice(((1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (65535 - jpeg.width, 0)))
    return jpeg.stream(), width == height == 0, (max(jpeg.width + width, 0), max(jpeg.height + height, 0))


def components(rng):
    return sound_stream(rng).but(components=rng.choice((0, 2, 4, 4, 4, 5, 255)), sampling=0x11).stream(), False


def adobe_cmyk(rng):
    adobe = segment(0xEE, b"Adobe\0\x64\0\0\0\0" + bytes([rng.randrange(3)]))
    jpeg = Jpeg(components=4)
    return jpeg.but(tables=jpeg.tables + adobe).stream(), False


def precisions(rng):
    return sound_stream(rng).but(precision=rng.choice((0, 1, 7, 9, 12, 12, 12, 16, 255))).stream(), False


def arithmetic(rng):
    jpeg = sound_stream(rng).but(frame=rng.choice((0xC9, 0xC9, 0xCA, 0xCB, 0xCD, 0xCF)), restart=0)
    return jpeg.but(tables=jpeg.tables + segment(0xCC, b"\0\x10\x10\x05")).stream(), False


def other_frames(rng):
    return sound_stream(rng).but(frame=rng.choice((0xC3, 0xC5, 0xC6, 0xC7, 0xC8)), restart=0).stream(), False


def samplings(rng):
    return Jpeg(24, 16, sampling=rng.choice((0, 0x01, 0x10, 0x44, 0x51, 0x15, 0xFF))).stream(), False


def long_sides(rng):
    width, height, right = rng.choice(
        (
            (65500, 32, True),
            (32, 65500, True),
            (65501, 8, False),
            (65535, 8, False),
            (8, 65535, False),
            (65500, 65500, False),
            (65535, 65535, False),
            (40000, 40000, False),
            (16, 0, False),
            (0, 16, False),
        )
    )
    jpeg = Jpeg(width, height)
    return (jpeg if right or width * height < 1 << 20 else Small(width, height)).stream(), right, (width, height)


class Small(Jpeg):
    """It claims a lot, and holds next to nothing."""

    def sequential(self):
        return self.scan(range(self.components), 0, 63, 0, 0, 8)


def cut_streams(rng):
    whole = sound_stream(rng).stream()
    return whole[: rng.randrange(len(whole))], False


def cut_before_its_end(rng):
    whole = sound_stream(rng).but(width=64, height=64, restart=0).stream()
    return whole[: -rng.randrange(3, 9)] + b"\xff\xd9", False


def behind_its_end(rng):
    return sound_stream(rng).stream() + rng.randbytes(rng.randrange(1, 40)), True


def tables(rng):
    full = bytes([2] + [0] * 15) + b"\0\0"
    quant = segment(0xDB, b"\0" + bytes([1] * 64))
    codes = segment(0xC4, b"\0" + bytes([3] + [0] * 15) + b"\0\1\2")
    choices = (
        b"",
        quant,
        Jpeg.tables[69:],
        quant + codes,
        quant + segment(0xC4, b"\0" + full + b"\x10" + full),
        quant + segment(0xC4, b"\0" + bytes([255] * 16)),
        quant + b"\xff\xc4\xff\xff",
        segment(0xDB, b"\x04"),
        quant + segment(0xC4, b"\x25" + bytes(16)),
        segment(0xDB, b"\0" * 10),
    )
    return Jpeg().but(tables=rng.choice(choices)).stream(), False


def restarts(rng):
    """Restart markers that are missing, out of order, or too many."""
    jpeg = Jpeg(64, 8, 1, restart=2)
    good = jpeg.stream()
    choices = (
        good.replace(b"\xff\xd1", b"\xff\xd2"),
        good.replace(b"\xff\xd1", b""),
        good.replace(b"\xff\xd0", b""),
        good.replace(b"\xff\xd1", b"\xff\xd1\xff\xd2"),
        jpeg.but(restart=0).stream().replace(b"\xff\xda", segment(0xDD, b"\0\2") + b"\xff\xda"),
    )
    return rng.choice(choices), False


def markers(rng):
    good = Jpeg().stream()
    frame = good[good.index(b"\xff\xc0") : good.index(b"\xff\xda")]
    scan = good.index(b"\xff\xda")
    choices = (
        good.replace(frame, frame + frame),
        good.replace(frame, b""),
        b"\xff\xd8" + good,
        good[2:],
        good[:scan] + b"\xff\xd9",
        good.replace(b"\xff\xda\0\x0c\x03\x01", b"\xff\xda\0\x0c\x03\x09"),
        good.replace(b"\xff\xda\0\x0c\x03", b"\xff\xda\0\x0c\x05"),
        good[:2] + b"\xff\xe1\xff\xff" + good[2:],
        good[:2] + b"\xff\xfe\0\1" + good[2:],
        b"\xff\xd8\xff\xd9",
        b"\x89PNG\r\n\x1a\n" + bytes(40),
    )
    return rng.choice(choices), False


def flipped(rng):
    stream = bytearray(sound_stream(rng).stream())
    for _ in range(rng.randrange(1, 5)):
        stream[rng.randrange(len(stream))] = rng.choice((0, 1, 0xFF, rng.randrange(256)))
    return bytes(stream), None


def noise(rng):
    return b"\xff\xd8" * rng.randrange(2) + rng.randbytes(rng.randrange(1, 200)), False


JPEGS = (
    sound,
    many_scans,
    wrong_sides,
    components,
    adobe_cmyk,
    precisions,
    arithmetic,
    other_frames,
    samplings,
    long_sides,
    cut_streams,
    cut_before_its_end,
    behind_its_end,
    tables,
    restarts,
    markers,
    flipped,
    noise,
)


def sides_in(stream, default=(16, 8)):
    """The sides in a stream's frame header, if it has one."""
    for marker in range(0xC0, 0xD0):
        at = stream.find(bytes([0xFF, marker, 0]))
        if marker not in (0xC4, 0xC8, 0xCC) and 0 <= at <= len(stream) - 9:
            height, width = struct.unpack_from(">HH", stream, at + 5)
            return width, height
    return default


def jpegs(rng):
    """Two images of one size: a hostile one and, at a random place, a valid one."""
    rule = rng.choice(JPEGS)
    stream, verdict, *sides = rule(rng)
    width, height = sides[0] if sides else sides_in(stream)
    values = [(("jpg", width, height, stream), 7)]
    if 0 < width <= 200 and 0 < height <= 200:
        values.insert(rng.randrange(2), (("jpg", width, height, Jpeg(width, height).stream()), 8))
    data = model.write([("image", "f0", None), ("int", "f1", None)], values, 1 << 15)
    return File(rule.__name__, data, verdict)


RULES = tuple(rule.__name__ for rule in (*STRUCTURE, *JPEGS))


def hostile_file(seed):
    rng = random.Random(seed)
    return structure(rng) if rng.random() < 0.55 else jpegs(rng)
