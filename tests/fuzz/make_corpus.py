"""Writes seeds for the fuzz targets with the package's own code.

PYTHONPATH=tests/support python tests/fuzz/make_corpus.py FOLDER

One folder for each target. The corpora in tests/fuzz/corpus began with these; libFuzzer added to them and minimised
them (tools/fuzz.sh).
"""

import json
import sys
from pathlib import Path

import _cgxffcv
import beton_files as files
import beton_model as model
import numpy as np
from checkout import ROOT

from cgxffcv import DatasetWriter, checkpoint
from cgxffcv.fields import BytesField, FloatField, IntField, JSONField, NDArrayField, RGBImageField

CUSTOM = ("custom", "c0", None)


def pixels(seed, height=16, width=24):
    rng = np.random.default_rng(seed)
    return np.repeat(np.repeat(rng.integers(0, 256, (height // 8, width // 8, 3), np.uint8), 8, 0), 8, 1)


def write(path, fields, samples, **options):
    writer = DatasetWriter(path, fields, allow_small_pages=True, num_workers=1, durable=False, **options)
    writer.from_indexed_dataset(samples)


def reader(folder):
    image = {"image": RGBImageField(write_mode="jpg", jpeg_quality=50), "label": IntField()}
    mixed = {
        "raw": RGBImageField(),
        "b": BytesField(),
        "j": JSONField(),
        "x": FloatField(),
        "a": NDArrayField(np.dtype("<i4"), (2, 3)),
    }
    values = [
        (pixels(i, 8, 8), np.arange(i, dtype=np.uint8), {"n": i}, i / 2, np.full((2, 3), i, "<i4")) for i in range(3)
    ]
    for checksums in (False, True):
        name = "sums" if checksums else "plain"
        write(folder / f"image_{name}", image, [(pixels(i), i) for i in range(2)], page_size=256, checksums=checksums)
        write(folder / f"mixed_{name}", mixed, values, page_size=512, checksums=checksums)
        write(folder / f"none_{name}", mixed, [], page_size=512, checksums=checksums)
        write(folder / f"ints_{name}", {"n": IntField()}, [(5,), (6,)], checksums=checksums)
    fields = [("bytes", "b", None), ("json", "j", None)]
    data = bytearray(model.write(fields, files.random_samples(np.random.default_rng(1), fields, 3), 64))
    table = int.from_bytes(data[16:24], "little")
    entries = np.frombuffer(bytes(data[table:]), "<u8").reshape(-1, 3)
    data[table:] = np.random.default_rng(3).permutation(entries).tobytes()
    (folder / "unsorted").write_bytes(data)
    (folder / "custom").write_bytes(custom(data))


def custom(data):
    """A file of one Bytes field, declared as the target's custom field c0 (24 bytes per record) instead."""
    body = bytearray(24 + 1041 + 2 * 24)
    body[0:24] = bytes(data[0:24])
    body[2:4] = (1).to_bytes(2, "little")
    body[4:8] = (64).to_bytes(4, "little")
    body[8:16] = (2).to_bytes(8, "little")
    body[24:41] = b"\xffc0".ljust(17, b"\0")
    start = -(-len(body) // 64) * 64
    for sample in range(2):
        at = 24 + 1041 + 24 * sample
        body[at + 8 : at + 24] = (start + 5 * sample).to_bytes(8, "little") + (5).to_bytes(8, "little")
    body += bytes(start - len(body)) + b"helloworld".ljust(64, b"\0")
    body[16:24] = len(body).to_bytes(8, "little")
    for sample in range(2):
        body += np.array([sample, start + 5 * sample, 5], "<u8").tobytes()
    return body


def jpeg(folder):
    from PIL import Image

    picture = Image.fromarray(pixels(4))
    (folder / "ours").write_bytes(_cgxffcv.jpeg_encode(pixels(5), 80))
    picture.save(folder / "progressive", "JPEG", quality=50, progressive=True)
    picture.convert("L").save(folder / "grey", "JPEG", quality=50)
    picture.convert("CMYK").save(folder / "cmyk", "JPEG", quality=50)
    picture.save(folder / "full", "JPEG", quality=50, subsampling=0)
    picture.save(folder / "restart", "JPEG", quality=50, restart_marker_blocks=1, comment=b"words")


def writer(folder):
    """The target reads its input as a program (tests/fuzz/fuzz_writer.c): any bytes will do."""
    rng = np.random.default_rng(6)
    for i in range(12):
        (folder / f"random{i}").write_bytes(rng.bytes(64 + 40 * i))
        (folder / f"small{i}").write_bytes(rng.integers(0, 8, 64 + 40 * i, np.uint8).tobytes())


def yaml(folder):
    (folder / "default").write_bytes((ROOT / "default_config.yaml").read_bytes()[:2000])
    texts = [
        "training:\n  lr: 0.1\n  epochs: 3\n",
        "training.lr: 1e-3\n",
        '{"training": {"lr": 0.5}}',
        "comm: {compression: none}\n",
        "training: &a {lr: 1}\nlog: *a\n",
        "training:\n  seed: 0x10\n",
        "- 1\n- 2\n",
        "training:\n  seed: !!python/object:os.system x\n",
        "? [a]\n: b\n",
        "a: !!timestamp 2001-01-01\n",
        "%YAML 1.1\n---\n",
    ]
    for i, text in enumerate(texts):
        (folder / f"text{i}").write_text(text)


def safetensors(folder):
    checkpoint.save(folder / "small", {"w": np.arange(6, dtype="<f4").reshape(2, 3), "step": 3, "name": "x"})
    checkpoint.save(folder / "none", {})
    checkpoint.save(folder / "empty", {"a": np.zeros((0, 3), np.uint8), "b": np.array(True), "m": {"k": [1, None]}})


def pickle(folder):
    import pickle

    batch = {b"data": np.arange(6, dtype=np.uint8).reshape(2, 3), b"labels": [1, 2], b"filenames": [b"a", b"b"]}
    for protocol in range(5):
        (folder / f"batch{protocol}").write_bytes(pickle.dumps(batch, protocol))
    (folder / "json").write_text(json.dumps([1]))


if __name__ == "__main__":
    for target in (reader, jpeg, writer, yaml, safetensors, pickle):
        folder = Path(sys.argv[1]) / target.__name__
        folder.mkdir(parents=True, exist_ok=True)
        target(folder)
