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
from collections.abc import Sequence
from pathlib import Path
from typing import Any

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


def convert(options: argparse.Namespace) -> WriteReport:
    common = {"checksums": options.checksums, "on_error": "skip" if options.skip_bad else "raise"}
    common["num_workers"] = options.workers
    names = [name for source in options.sources for name in expand(source)]
    endings = {os.path.splitext(name)[1].lower() for name in names}
    if endings == {".beton"}:
        return _merge(options, common)
    if len(names) == 1 and os.path.isdir(names[0]):
        classes = plain_names(ImageFolder(names[0]).classes, names[0])
        report = _writer(options, common).from_image_folder(names[0], shuffle_indices=options.shuffle)
        keep_names(options.out, classes)
        return report
    if endings <= {".tar", ".tgz", ".gz"}:
        if options.shuffle:
            raise UserError("tar files are read in their own order: no --shuffle")
        report = _writer(options, common).from_webdataset(names, lambda them: them.decode().to_tuple(IMAGES, "cls"))
        keep_names(options.out, None)
        return report
    raise UserError(f"one folder, tar files or .beton files are expected, not {', '.join(names)}")


def main(prog: str, arguments: Sequence[str]) -> int:
    options = make_parser(prog).parse_args(arguments)
    interrupts.careful()
    Path(options.out).parent.mkdir(parents=True, exist_ok=True)
    try:
        report = convert(options)
    except (OSError, ValueError) as error:  # BetonError, too
        raise UserError(str(error)) from error
    process.say(str(report))
    for bad in report.skipped:
        process.say(f"left out: sample {bad.index}: {bad.reason}")
    return 0
