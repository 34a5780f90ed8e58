"""JPEG streams made marker by marker (ITU-T T.81), without a library: all coefficients are 0, so that every image is
grey (128), and the only thing wrong with it is what a test asked for."""

import struct
from dataclasses import dataclass, replace

ONE_CODE = bytes([1] + [0] * 15) + b"\0"  # the bit 0 is the only symbol, 0: no difference, or a block's end
GREY = 128


def segment(marker, body):
    return struct.pack(">BBH", 0xFF, marker, len(body) + 2) + body


def packed(bits):
    """That many 0 bits, then 1 bits until the byte is full."""
    spare = -bits % 8
    return b"\0" * (bits // 8) if spare == 0 else b"\0" * (bits // 8) + bytes([(1 << spare) - 1])


@dataclass
class Jpeg:
    width: int = 16
    height: int = 8
    components: int = 3
    frame: int = 0xC0  # the marker
    precision: int = 8
    sampling: int = 0x11  # of the first component
    restart: int = 0
    scans: int = 1  # more than one: the frame must be 0xC2
    tables: bytes = segment(0xDB, b"\0" + bytes([1] * 64)) + segment(0xC4, b"\0" + ONE_CODE + b"\x10" + ONE_CODE)

    def but(self, **changes):
        return replace(self, **changes)

    def head(self):
        parts = b"".join(bytes([i + 1, self.sampling if i == 0 else 0x11, 0]) for i in range(self.components))
        frame = struct.pack(">BHHB", self.precision, self.height, self.width, self.components) + parts
        restart = segment(0xDD, struct.pack(">H", self.restart)) if self.restart else b""
        return b"\xff\xd8" + self.tables + segment(self.frame, frame) + restart

    def groups(self):
        """(groups of blocks, blocks of each) of a scan of all components."""
        across, down = (self.sampling >> 4, self.sampling & 15) if self.components > 1 else (1, 1)
        across, down = max(across, 1), max(down, 1)
        number = -(-self.width // (8 * across)) * -(-self.height // (8 * down))
        return number, across * down + self.components - 1

    def scan(self, components, begin, end, before, after, bits):
        parts = b"".join(bytes([i + 1, 0]) for i in components)
        head = segment(0xDA, bytes([len(components)]) + parts + bytes([begin, end, before << 4 | after]))
        return head + packed(bits)

    def sequential(self):
        groups, blocks = self.groups()
        whole = self.scan(range(self.components), 0, 63, 0, 0, 2 * groups * blocks)
        if not self.restart:
            return whole
        head, data = whole[: -len(packed(2 * groups * blocks))], b""
        for i, first in enumerate(range(0, groups, self.restart)):
            data += bytes([0xFF, 0xD0 + (i - 1) % 8]) if i else b""
            data += packed(2 * min(self.restart, groups - first) * blocks)
        return head + data

    def progressive(self):
        """A scan of all DC coefficients, then scans of one AC coefficient of one component each, as often as there are
        bits to refine."""
        groups, blocks = self.groups()
        out, left = self.scan(range(self.components), 0, 0, 0, 0, groups * blocks), self.scans - 1
        for bit in range(13, -1, -1):
            for k in range(1, 64):
                for i in range(self.components):
                    if left > 0:
                        out += self.scan([i], k, k, 0 if bit == 13 else bit + 1, bit, self.blocks_of(i))
                        left -= 1
        return out

    def blocks_of(self, i):
        """The blocks of a scan of one component."""
        across, down = (self.sampling >> 4, self.sampling & 15) if i > 0 and self.components > 1 else (1, 1)
        return -(-self.width // (8 * across)) * -(-self.height // (8 * down))

    def stream(self):
        return self.head() + (self.progressive() if self.frame == 0xC2 else self.sequential()) + b"\xff\xd9"
