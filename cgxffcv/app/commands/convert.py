"""Writes a .beton file from a folder of images, tar shards, or other .beton files.

    cgxffcv convert FOLDER OUT.beton              FOLDER/CLASS/**/IMAGE: the image and the class's number, whose name
                                                  goes into OUT.beton.classes
    cgxffcv convert 'part-{000..012}.tar' OUT.beton     members KEY.jpg (or .jpeg, .png) and KEY.cls
    cgxffcv convert A.beton B.beton OUT.beton     their samples, one file after the other; the fields must be the same

JPEG files are stored unchanged, unless --max-resolution makes them smaller or --mode raw decodes them.
"""

from __future__ import annotations

import argparse
import os
import tarfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import _cgxffcv

from cgxffcv import beton, interrupts
from cgxffcv.app import process
from cgxffcv.app.usage import Parser, whole
from cgxffcv.classes import keep_names, plain_names
from cgxffcv.errors import UserError
from cgxffcv.fields import IntField, RGBImageField
from cgxffcv.writer import DatasetWriter, WriteReport
from cgxffcv.writer.webshards import expand
from cgxffcv.writer.writer import ImageFolder

IMAGES = "jpg;jpeg;png"
REMEDY = "fix or remove it, or leave such images out: --skip-bad"


def make_parser(prog: str) -> Parser:
    parser = Parser(prog=prog, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sources", nargs="+", metavar="SOURCE", help="a folder, tar files, or .beton files")
    parser.add_argument("out", metavar="OUT.beton", help="an existing file is replaced once the new one is complete")
    parser.add_argument(
        "--mode",
        choices=("given", "jpg", "raw"),
        default="given",
        help="how images are stored: JPEG only if they are JPEG (given), all as JPEG, or as pixels",
    )
    parser.add_argument(
        "--max-resolution",
        type=whole(1, 65535),
        metavar="PIXELS",
        help="limit of the longer side; larger images are scaled down",
    )
    parser.add_argument("--quality", type=whole(1, 100), default=90, help="quality of JPEG images encoded here (90)")
    parser.add_argument("--shuffle", action="store_true", help="write in a random order drawn from --seed (folders)")
    parser.add_argument("--seed", type=whole(0), default=0, help="seed of --shuffle (0)")
    parser.add_argument("--skip-bad", action="store_true", help="leave out what cannot be read, and list it")
    parser.add_argument(
        "--checksums", action="store_true", help="store checksums, with which `cgxffcv verify` finds any changed byte"
    )
    parser.add_argument(
        "--workers", type=whole(1), default=-1, metavar="N", help="worker processes; by default all cores"
    )
    return parser


def _writer(options: argparse.Namespace, common: dict[str, Any]) -> DatasetWriter:
    mode = "jpg" if options.mode == "given" and options.max_resolution else options.mode
    image = RGBImageField(mode, options.max_resolution, jpeg_quality=options.quality)
    return DatasetWriter(options.out, {"image": image, "label": IntField()}, seed=options.seed, **common)


def _merge(options: argparse.Namespace, common: dict[str, Any]) -> WriteReport:
    if options.max_resolution or options.mode != "given" or options.shuffle:
        raise UserError(".beton files are copied as they are: no --mode, --max-resolution, --shuffle")
    return beton.merge(options.out, options.sources, **common)


def _from_folder(options: argparse.Namespace, common: dict[str, Any], folder: str) -> WriteReport:
    images = ImageFolder(folder)
    classes = plain_names(images.classes, folder)
    try:
        report = _writer(options, common).from_indexed_dataset(images, shuffle_indices=options.shuffle)
    except _cgxffcv.BetonError as error:
        if error.sample is None:
            raise
        raise UserError(f"{_of_file(images.paths[error.sample], error.reason)}; {REMEDY}") from error
    keep_names(options.out, classes)
    skipped = [replace(bad, reason=_of_file(images.paths[bad.index], bad.reason)) for bad in report.skipped]
    return replace(report, skipped=tuple(skipped))


def _from_shards(options: argparse.Namespace, common: dict[str, Any], names: list[str]) -> WriteReport:
    try:
        report = _writer(options, common).from_webdataset(names, lambda them: them.decode().to_tuple(IMAGES, "cls"))
    except _cgxffcv.BetonError as error:
        raise UserError(f"{error}; {REMEDY}" if error.sample is not None else str(error)) from error
    except (ValueError, tarfile.TarError) as error:
        raise UserError("; ".join([str(error), *getattr(error, "__notes__", ())[:1]])) from error
    keep_names(options.out, None)
    return report


def _of_file(path: str, reason: str) -> str:
    return reason if path in reason else f"{path}: {reason}"


def convert(options: argparse.Namespace) -> WriteReport:
    common = {"checksums": options.checksums, "on_error": "skip" if options.skip_bad else "raise"}
    common["num_workers"] = options.workers
    names = [name for source in options.sources for name in expand(source)]
    endings = {os.path.splitext(name)[1].lower() for name in names}
    if endings == {".beton"}:
        return _merge(options, common)
    if len(names) == 1 and os.path.isdir(names[0]):
        return _from_folder(options, common, names[0])
    if endings <= {".tar", ".tgz", ".gz"}:
        if options.shuffle:
            raise UserError("tar files are read in their own order: no --shuffle")
        return _from_shards(options, common, names)
    for name in names:
        if not os.path.exists(name):
            raise UserError(f"{name}: no such file or folder")
    raise UserError(f"one folder, tar files or .beton files are expected, not {', '.join(names)}")


def main(prog: str, arguments: Sequence[str]) -> int:
    options = make_parser(prog).parse_args(arguments)
    interrupts.careful()
    Path(options.out).parent.mkdir(parents=True, exist_ok=True)
    try:
        report = convert(options)
    except OSError as error:
        what = error.strerror or str(error)  # without a number
        raise UserError(f"{error.filename}: {what}" if error.filename else what) from error
    except ValueError as error:  # BetonError, too
        raise UserError(str(error)) from error
    process.say(str(report))
    for bad in report.skipped:
        process.say(f"left out: sample {bad.index}: {bad.reason}")
    return 0
