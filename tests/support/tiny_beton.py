"""Small .beton files for tests of the loader, from arrays, through the model of the format."""

import io
import json
from pathlib import Path

import beton_model as model
import numpy as np


def jpeg(pixels, quality=90):
    from PIL import Image

    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "JPEG", quality=quality)
    return out.getvalue()


def as_value(kind, value, sides):
    """`value` in the model's form."""
    if kind in ("int", "float"):
        return value
    if kind == "image" and isinstance(value, bytes):
        return ("jpg", sides[1], sides[0], value)
    if kind == "image":
        return ("raw", value.shape[1], value.shape[0], value.tobytes())
    if kind == "json":
        return json.dumps(value).encode()
    return value if isinstance(value, bytes) else value.tobytes()


def write(path, fields, page_size=1 << 21, sides=None):
    """`fields`: {name: (kind, values)}. An image is an array (height, width, 3), or JPEG bytes of size `sides`."""
    described = []
    for name, (kind, values) in fields.items():
        arrays = kind in ("array", "tensor")
        described.append((kind, name, (values[0].dtype.str, np.shape(values[0])) if arrays else None))
    columns = [[as_value(kind, value, sides) for value in values] for kind, values in fields.values()]
    Path(path).write_bytes(model.write(described, list(zip(*columns, strict=True)), page_size))
    return path
