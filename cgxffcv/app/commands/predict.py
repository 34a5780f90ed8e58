"""`cgxffcv predict`: classifies images in files with a trained network."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator, Sequence
from typing import IO, Any

import numpy as np

from cgxffcv import files
from cgxffcv.app import runs
from cgxffcv.app.usage import Parser, whole
from cgxffcv.classes import check_same, names_file, read_names
from cgxffcv.errors import UserError

BATCH = 500
DESCRIPTION = """\
Prints the class of each image according to a network that cgxffcv trained. CHECKPOINT is a run's last.safetensors or
best.safetensors, or its log folder (for the best). IMAGES are pictures (JPEG; with Pillow also PNG and others), .npy
files (uint8, height x width x 3, one image or several) and .beton files, for which it also prints how many labels it
got right."""

Part = tuple[list[str], np.ndarray, np.ndarray | None]  # names, uint8 (n, side, side, 3), labels (n,) if there are any


def _refuse(path: str, reason: object) -> UserError:
    return UserError(f"{path}: {reason}")


def _one_or_more(array: np.ndarray, path: str, side: int) -> np.ndarray:
    batch, one = array[None] if array.ndim == 3 else array, (side, side, 3)
    if batch.dtype != np.uint8 or batch.ndim != 4 or batch.shape[1:] != one or len(batch) == 0:
        expected = f"uint8 and {one}, or {('n', *one)} for several images".replace("'", "")
        raise _refuse(path, f"{array.dtype} of the shape {array.shape}; expected {expected}")
    return batch


def _npy_header(file: IO[bytes], path: str) -> np.ndarray:
    """An array of the dtype and shape in a .npy file's header, which takes no memory."""
    try:
        known = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
        shape, columns_first, dtype = known[np.lib.format.read_magic(file)](file)
        if dtype.hasobject:
            raise ValueError("it holds Python objects")
        if columns_first and len(shape) > 1:
            raise ValueError("its elements are in Fortran order; numpy.ascontiguousarray changes that")
        return np.broadcast_to(np.zeros((), dtype), shape)
    except (ValueError, EOFError, OverflowError, KeyError) as error:
        reason = "an unknown version of the format" if isinstance(error, KeyError) else error
        raise _refuse(path, f"not a readable .npy file: {reason}") from error


def _from_npy(path: str, side: int) -> Iterator[Part]:
    """Read piece by piece, not mapped: if a mapped file is truncated meanwhile, the process is killed."""
    with files.open_plain(path, "rb") as file:
        array = _npy_header(file, path)
        count, one = len(_one_or_more(array, path, side)), side * side * 3
        for at in range(0, count, BATCH):
            part = min(BATCH, count - at)
            with files.naming(path):
                data = file.read(part * one)
            if len(data) < part * one:
                raise _refuse(path, f"not a readable .npy file: its header says {count:,} images, but it ends before")
            names = [path if array.ndim == 3 else f"{path}[{at + i}]" for i in range(part)]
            yield names, np.frombuffer(data, np.uint8).reshape(part, side, side, 3), None


def _field(file: Any, name: str, kind: str) -> str | None:
    """The field of this name and kind, or the only one of the kind."""
    fitting = [other for other, info in file.fields.items() if info.kind == kind]
    return name if name in fitting else fitting[0] if len(fitting) == 1 else None


def _from_beton(path: str, side: int) -> Iterator[Part]:
    from cgxffcv.reader import Reader

    with Reader(path) as file:
        image = _field(file, "image", "image")
        if image is None:
            raise _refuse(path, f'expected a field "image" of images; it has {", ".join(file.fields) or "no fields"}')
        if len(file) == 0:
            raise _refuse(path, "holds no images")
        label = _field(file, "label", "int")
        labels = None if label is None else file.column(label)
        for at in range(0, len(file), BATCH):
            numbers = range(at, min(at + BATCH, len(file)))
            images = [_one_or_more(file.value(i, image), f"{path}[{i}]", side) for i in numbers]
            yield (
                [f"{path}[{i}]" for i in numbers],
                np.concatenate(images),
                None if labels is None else labels[at : at + BATCH],
            )


def _from_picture(path: str, resize: bool, side: int) -> Iterator[Part]:
    import _cgxffcv

    from cgxffcv.app.image_folder import square
    from cgxffcv.fields import RGBImageField

    try:
        found = RGBImageField().convert(path)
        pixels = _cgxffcv.jpeg_decode(found) if isinstance(found, bytes) else found
    except (ValueError, TypeError) as error:
        raise UserError(str(error) if path in str(error) else f"{path}: {error}") from error
    if pixels.shape != (side, side, 3):
        height, width = pixels.shape[:2]
        if not resize:
            size = f"{width} x {height} pixels, but the network takes {side} x {side}"
            raise _refuse(path, f"{size}; --resize takes the square in the middle and scales it")
        pixels = square(pixels, side)  # as the training's images were
    yield [path], pixels[None], None


def _parts(path: str, resize: bool, side: int) -> Iterator[Part]:
    if os.path.isdir(path):
        raise _refuse(path, "a folder; name the pictures in it, as the shell does for FOLDER/*.jpg")
    if path.lower().endswith(".npy"):
        return _from_npy(path, side)
    return _from_beton(path, side) if path.lower().endswith(".beton") else _from_picture(path, resize, side)


def _line(name: str, probability: np.ndarray, classes: Sequence[str], options: argparse.Namespace) -> str:
    order = np.argsort(-probability, kind="stable")
    if options.json:
        best = int(order[0])
        record: dict[str, Any] = {"image": name, "class": classes[best], "number": best}
        record["probabilities"] = dict(zip(classes, (round(float(p), 6) for p in probability), strict=True))
        return json.dumps(record)
    return f"{name}: " + ", ".join(f"{classes[i]} {probability[i]:.1%}" for i in order[: options.top])


def _predict_file(classifier: Any, path: str, options: argparse.Namespace) -> None:
    wanted: list[np.ndarray] = []
    found: list[np.ndarray] = []
    if path.lower().endswith(".beton"):
        check_same(read_names(path) or (), names_file(path), classifier.names or (), classifier.name)
    for names, pixels, labels in _parts(path, options.resize, classifier.recipe.side):
        probabilities = classifier.probabilities(pixels, tta=not options.plain)
        for name, probability in zip(names, probabilities, strict=True):
            print(_line(name, probability, classifier.classes, options))
        if labels is not None:
            wanted.append(labels)
            found.append(probabilities.argmax(axis=1))
    if wanted:
        many = 1 if options.plain else len(classifier.recipe.views)
        looked = f"mean of {many} views" if many > 1 else "plain view"
        _compare(path, np.concatenate(wanted), np.concatenate(found), len(classifier.classes), looked, options.json)


def _compare(path: str, labels: np.ndarray, found: np.ndarray, classes: int, looked: str, as_json: bool) -> None:
    """Prints how many labels the network got right, unless they cannot be those of its classes."""
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= classes:
        text = f"labels from {low} to {high}, but the network has classes 0 to {classes - 1}: not compared"
        print(f"{path}: {text}", file=sys.stderr)
        return
    images, correct = len(labels), int((found == labels).sum())
    if as_json:
        print(json.dumps({"file": path, "images": images, "correct": correct, "accuracy": correct / images}))
    else:
        print(f"{path}: {correct:,} of {images:,} labels right ({correct / images:.2%}, {looked})")


def make_parser(prog: str) -> Parser:
    parser = Parser(prog=prog, description=DESCRIPTION)
    parser.add_argument("checkpoint", metavar="CHECKPOINT")
    parser.add_argument("images", metavar="IMAGES", nargs="+")
    parser.add_argument("--top", type=whole(1, 10), default=1, metavar="K", help="print the K most probable classes")
    parser.add_argument(
        "--plain", action="store_true", help="classify the images as they are, without the recipe's other views"
    )
    parser.add_argument(
        "--resize",
        action="store_true",
        help="take pictures of any size: the square in the middle, scaled as data.source=folder does",
    )
    parser.add_argument(
        "--device", default="cpu", choices=("auto", "cpu", "gpu"), help="where to compute (default cpu)"
    )
    parser.add_argument("--json", action="store_true", help="print JSON, for programs: one object per line")
    return parser


def main(prog: str, arguments: Sequence[str]) -> int:
    options = make_parser(prog).parse_args(list(arguments))
    from cgxffcv import nn

    classifier = nn.load(runs.checkpoint_of(options.checkpoint), device=options.device)
    for path in options.images:
        _predict_file(classifier, path, options)
    return 0
