"""`cgxffcv export`: a trained network for PyTorch or ONNX."""

from __future__ import annotations

import os
from collections.abc import Sequence
from importlib.util import find_spec

from cgxffcv.app import runs
from cgxffcv.app.usage import Parser
from cgxffcv.errors import UserError

DESCRIPTION = """\
Writes a trained network for other frameworks. CHECKPOINT is a run's last.safetensors or best.safetensors, or its log
folder (for the best). torch: safetensors with PyTorch's names and layouts, which cgxffcv/interop/torch_network.py
loads, a file of 30 lines to copy that needs only torch and safetensors; onnx: a model from uint8 images (n, side, side,
3) to logits, for onnxruntime and others (needs the package onnx). Both normalise the images themselves and see only
their plain view."""


def make_parser(prog: str) -> Parser:
    parser = Parser(prog=prog, description=DESCRIPTION)
    parser.add_argument("checkpoint", metavar="CHECKPOINT")
    parser.add_argument("out", metavar="OUT", help="the file; an existing one is replaced once the new one is complete")
    parser.add_argument("--to", choices=("torch", "onnx"), required=True, help="what it is for")
    return parser


def main(prog: str, arguments: Sequence[str]) -> int:
    options = make_parser(prog).parse_args(list(arguments))
    from cgxffcv import nn
    from cgxffcv.nn import export

    path = runs.checkpoint_of(options.checkpoint)
    classifier = nn.load(path, precision="float32")
    if os.path.exists(options.out) and os.path.samefile(path, options.out):
        raise UserError(f"{options.out}: OUT is CHECKPOINT itself, which would be lost; name another file")
    (export.to_torch if options.to == "torch" else export.to_onnx)(classifier, options.out)
    print(f"{options.out}: {classifier.network.description.name}, {len(classifier.classes)} classes")
    if options.to == "torch":
        print(f"{find_spec('cgxffcv.interop.torch_network').origin} loads it without cgxffcv: copy that file")
    return 0
