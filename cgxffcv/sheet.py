"""Contact sheets: small pictures of a file's images, as PNG and in the HTML that notebooks show."""

from __future__ import annotations

import base64
import struct
import zlib
from typing import TYPE_CHECKING

import _cgxffcv
import numpy as np

if TYPE_CHECKING:
    from cgxffcv.reader import Reader

PNG = b"\x89PNG\r\n\x1a\n"
WHITE, GAP = 255, 2
SHOWN = 400  # pixels across a notebook's sheet


def png(image: np.ndarray) -> bytes:
    """An RGB image, uint8 (height, width, 3), as a PNG file."""
    height, width = image.shape[:2]
    rows = np.zeros((height, 1 + width * 3), np.uint8)  # each begins with its filter: none
    rows[:, 1:] = image.reshape(height, -1)

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return PNG + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows.tobytes())) + chunk(b"IEND", b"")


def thumbnail(image: np.ndarray, side: int) -> np.ndarray:
    """The image scaled to fit side x side, with its aspect ratio kept; one that already fits is not enlarged."""
    height, width = image.shape[:2]
    share = min(1.0, side / max(height, width))
    if share == 1:
        return image
    size = max(1, round(height * share)), max(1, round(width * share))
    return _cgxffcv.resize_area(np.ascontiguousarray(image), *size)


def contact_sheet(reader: Reader, field: str | None = None, count: int = 64, side: int = 96) -> np.ndarray:
    """Images of evenly spaced samples, row after row, each within side x side, in cells as large as the largest of them
    needs. field: by default the first that holds images.

    Raises:
        ValueError: there are no images. BetonError: one cannot be read.
    """
    names = [name for name, info in reader.fields.items() if info.kind == "image"]
    if field is None and names:
        field = names[0]
    if field not in names:
        asked = "no field" if field is None else f"field {field!r} is not one that"
        raise ValueError(f"{reader.path}: {asked} holds images{': ' + ', '.join(names) if names else ''}")
    count = min(count, len(reader))
    if count < 1:
        raise ValueError(f"{reader.path} has no samples to show")
    columns = int(np.ceil(np.sqrt(count)))
    smalls = [thumbnail(reader.value(place * len(reader) // count, field), side) for place in range(count)]
    cell = max(max(small.shape[:2]) for small in smalls) + GAP
    sheet = np.full((-(-count // columns) * cell, columns * cell, 3), WHITE, np.uint8)
    for place, small in enumerate(smalls):
        y, x = place // columns * cell, place % columns * cell
        sheet[y : y + small.shape[0], x : x + small.shape[1]] = small
    return sheet


def as_html(text: str, reader: Reader | None) -> str:
    """The given HTML, and below it a contact sheet, if there are images that can be read."""
    parts = [text]
    try:
        sheet = None if reader is None else contact_sheet(reader, count=16)
    except ValueError:  # BetonError is one: damage is reported when the data is read
        sheet = None
    if sheet is not None:
        zoom = max(1, SHOWN // sheet.shape[1])  # tiny pictures are shown larger
        look = f'width="{zoom * sheet.shape[1]}" style="image-rendering: pixelated"'
        parts.append(f'<img {look} src="data:image/png;base64,{base64.b64encode(png(sheet)).decode()}"/>')
    return "".join(parts)
