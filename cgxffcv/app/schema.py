"""What can be configured: every parameter with its type, its range, its default, and the demo's flat flags for it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from cgxffcv.recipes import SIDES, Recipe


class WrongValue(ValueError):
    """A value that is not what a parameter expects; the message says what it expects."""


@dataclass(frozen=True)
class Param:
    """One parameter. `kind` is the expectation in words; `convert` gives the value in its type or raises WrongValue.

    `as_written`: a word in a file is taken literally, whatever YAML would make of it (012, no, 2026-11-29).
    """

    convert: Callable[[Any], Any]
    kind: str
    default: Any
    help: str
    as_written: bool = False


def _optional(read: Callable[[Any], Any], default: Any) -> Callable[[Any], Any]:
    """None (also as the words none and null) is a value where the default is None."""

    def convert(value: Any) -> Any:
        if default is None and (value is None or (isinstance(value, str) and value.lower() in ("", "none", "null"))):
            return None
        return read(value)

    return convert


LARGEST = 2**31 - 1
MOST_THREADS = 1024


def integer(default: int | None, help: str, minimum: int, maximum: int = LARGEST, also: tuple[int, ...] = ()) -> Param:
    kind = f"a whole number from {minimum}" + (f" to {maximum}" if maximum < LARGEST else "")
    kind += "".join(f", or {value}" for value in also)

    def read(value: Any) -> int:
        if isinstance(value, str):
            try:
                value = int(value.strip().replace("_", ""))
            except ValueError:
                raise WrongValue(kind) from None
        if isinstance(value, bool) or not isinstance(value, int):
            raise WrongValue(kind)
        if not (minimum <= value <= maximum or value in also):
            raise WrongValue(f"{kind}; the largest is {maximum}" if value > maximum == LARGEST else kind)
        return value

    return Param(_optional(read, default), kind, default, help)


def number(
    default: float | None,
    help: str,
    minimum: float,
    maximum: float = math.inf,
    below: bool = False,
    above: bool = False,
) -> Param:
    kind = "a number"
    if minimum > -math.inf:
        kind += f" {'above' if above else 'from'} {minimum:g}"
    if maximum < math.inf:
        kind += f" to {'below ' if below else ''}{maximum:g}"

    def read(value: Any) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float | str):
            raise WrongValue(kind)
        try:
            result = float(value)  # YAML 1.1 reads 5e-4 as text
        except (ValueError, OverflowError):
            raise WrongValue(kind) from None
        outside = (below and result == maximum) or (above and result == minimum)
        if outside or not (math.isfinite(result) and minimum <= result <= maximum):
            raise WrongValue(kind)
        return result

    return Param(_optional(read, default), kind, default, help)


def boolean(default: bool | None, help: str) -> Param:
    words = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}

    def read(value: Any) -> bool:
        if isinstance(value, bool):
            return value
        text = str(value).strip().lower()
        if isinstance(value, int | str) and text in words:
            return words[text]
        raise WrongValue("true or false")

    return Param(_optional(read, default), "true or false", default, help)


def text(default: str | None, help: str, kind: str = "text") -> Param:
    def read(value: Any) -> str:
        if not isinstance(value, str) or not value or "\0" in value:
            raise WrongValue(kind)
        return value

    return Param(_optional(read, default), kind, default, help, as_written=True)


def choice(default: str | None, help: str, *words: str) -> Param:
    kind = "one of " + ", ".join(words)

    def read(value: Any) -> str:
        word = str(value).strip().lower()
        if word not in words:
            raise WrongValue(kind)
        return word

    return Param(_optional(read, default), kind, default, help, as_written=True)


def several(help: str, inner: Callable[[str], Any]) -> Param:
    """A list, in YAML's form or as text with commas; items may be pairs (first:second). inner: converts one number."""
    kind = "numbers with commas between them"

    def item(value: Any) -> Any:
        if isinstance(value, str) and ":" in value:
            value = value.split(":")
        if isinstance(value, list | tuple):
            return tuple(inner(str(part)) for part in value)
        return inner(str(value))

    def read(value: Any) -> tuple[Any, ...]:
        try:
            parts = value.split(",") if isinstance(value, str) else value
            return tuple(item(part) for part in ([parts] if isinstance(parts, int | float) else parts))
        except (TypeError, ValueError):
            raise WrongValue(kind) from None

    return Param(_optional(read, None), kind, None, help)


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(text)
    return value


def _of_recipe(field: dataclasses.Field[Any]) -> Param:
    help = f"the recipe's {field.name}"
    if str(field.type).startswith("tuple"):
        return several(help, int if field.type == "tuple[int, ...]" else _finite)
    if field.type == "bool":
        return boolean(None, help)
    if field.type == "int":
        return integer(None, help, 0)
    if field.type == "float":
        return number(None, help, -math.inf)
    return text(None, help)


SECTIONS = {
    "data": "where the data comes from and where the .beton files are",
    "training": "what is trained, and how; values that are not given are the recipe's",
    "recipe": "everything else that a recipe decides; see cgxffcv/recipes.py",
    "compression": "how gradients are compressed (used by comm.backend=cgx)",
    "comm": "how the ranks communicate",
    "log": "what is shown and what is saved",
}

SCHEMA: dict[str, Param] = {
    "data.train_dataset": text("data/cifar_train.beton", "the training set, a .beton file", "a file name"),
    "data.val_dataset": text("data/cifar_test.beton", "the test set, a .beton file", "a file name"),
    "data.gpu": integer(0, "index of the first GPU to use; the ranks of a machine take its GPUs in turn", 0),
    "data.num_workers": integer(
        -1, "threads that write the .beton files; -1: one per core", 1, MOST_THREADS, also=(-1,)
    ),
    "data.source": choice(
        "auto",
        "local: CIFAR-10 under data.root; download: the official archive; sample: the 6,000 shipped images; "
        "auto: the first of these that is available; folder: your own images, in data.folder",
        *("auto", "local", "download", "sample", "folder"),
    ),
    "data.root": text(
        "data", "folder in which CIFAR-10, and .beton files made of your own images, are kept", "a folder name"
    ),
    "data.folder": text(None, "with source folder: your images, one sub-folder per class", "a folder name"),
    "data.val_folder": text(
        None, "with source folder: the test images, in sub-folders of the same names", "a folder name"
    ),
    "data.val_share": number(
        0.1, "with source folder and no val_folder: the share of each class that is kept for the test", 0, 1, True, True
    ),
    "data.split_seed": integer(0, "decides which images that share takes", 0),
    "data.side": integer(32, "with source folder: side in pixels of the square that each image is made", *SIDES),
    "data.on_error": choice(
        "raise",
        "with source folder: stop at an image that cannot be read, or leave it out (skip)",
        *("raise", "skip"),
    ),
    "data.checksums": boolean(
        False, "write the .beton files with checksums, so that `cgxffcv verify` finds any changed byte"
    ),
    "data.url": text(
        "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
        "where the official archive is downloaded from; the checksum stays the official one",
        "an http, https or file address",
    ),
    "training.recipe": text(
        "resnet9", "the recipe: network, optimizer, schedule, augmentation", "the name of a recipe"
    ),
    "training.batch_size": integer(None, "images per step, over all processes (recipes ffcv and demo: per process)", 1),
    "training.val_batch_size": integer(None, "images per batch in the test (500; on a GPU 2,000)", 1, 2**20),
    "training.epochs": number(None, "passes over the training set", 0, 1e6, above=True),
    "training.lr": number(None, "learning rate (the highest of the schedule)", 0),
    "training.momentum": number(None, "momentum of SGD", 0, 1, below=True),
    "training.lr_peak_epoch": number(
        None, "epoch at which the rate of recipes resnet9, ffcv and resnet18 is highest", 0
    ),
    "training.weight_decay": number(None, "weight decay", 0),
    "training.label_smoothing": number(None, "label smoothing", 0, 1, below=True),
    "training.lr_tta": boolean(None, "test on the mean of each image and its mirror"),
    "training.num_workers": integer(
        -1, "threads that load, per process; -1: one per core", 1, MOST_THREADS, also=(-1,)
    ),
    "training.seed": integer(0, "decides initialisation, order and augmentation", 0),
    "training.device": choice("auto", "where to train; auto: the GPU if there is one", "auto", "cpu", "gpu"),
    "training.precision": choice(
        "auto",
        "the type of activations and products (parameters and sums are float32); auto: float16 on a GPU, "
        "bfloat16 on a CPU that can multiply it, else float32",
        *("auto", "float32", "bfloat16", "float16"),
    ),
    "training.deterministic": boolean(
        False, "on a GPU, use only algorithms that give the same bytes every time (a CPU always does)"
    ),
    "training.resident": boolean(
        True, "on a GPU, keep the data sets in its memory, as far as they fit; false: feed it batch by batch"
    ),
    "training.test_every": integer(1, "epochs from one test to the next; the last epoch is always tested", 1),
    "training.resume": text(None, "checkpoint, or log folder, to resume from", "a file or folder name"),
    "compression.bits": integer(32, "bits per gradient value; 32: no compression", 1, 8, also=(32,)),
    "compression.bucket_size": integer(1024, "gradient values that share one scale", 1),
    "compression.layer_min_size": integer(1024, "layers with fewer values are sent uncompressed", 0),
    "compression.algorithm": choice(
        "auto", "how the compressed sum is computed", "auto", "sra", "one_shot", "ring", "two_level"
    ),
    "compression.error_feedback": choice(
        "none", "add what quantisation lost at the next step, kept in float32 or int8", "none", "float32", "int8"
    ),
    "compression.stochastic": boolean(False, "round at random (without bias) instead of to the nearest level"),
    "comm.backend": choice(
        "nccl",
        "cgx: compressed allreduce; nccl: uncompressed, through NCCL if built in, else by our own code; "
        "gloo and mpi: uncompressed",
        *("cgx", "nccl", "gloo", "mpi"),
    ),
    "comm.timeout": number(300.0, "seconds to wait for another rank before giving up", 1),
    "log.dir": text("runs/cifar", "folder for run.jsonl, log.csv, config.yaml and the checkpoints", "a folder name"),
    "log.progress": choice(
        "auto",
        "a progress bar, plain lines, or nothing; auto: a bar in a terminal",
        *("auto", "bar", "lines", "off"),
    ),
    "log.config": choice(
        "changed",
        "what is printed of the configuration before a run: what differs from the defaults and the recipe, or all; "
        "config.yaml has all of it",
        *("changed", "all"),
    ),
    "log.interval": number(10.0, "seconds between plain progress lines", 0),
    "log.tensorboard": boolean(
        False, "also write curves and configuration for TensorBoard to log.dir (needs tensorboard)"
    ),
}


# The values of a recipe that have FFCV's names, in the training section; all others are in the recipe section.
OF_TRAINING = ["batch_size", "epochs", "lr", "momentum", "lr_peak_epoch", "weight_decay", "label_smoothing", "lr_tta"]
SCHEMA |= {
    f"recipe.{field.name}": _of_recipe(field)
    for field in dataclasses.fields(Recipe)
    if field.name not in ("name", "summary", "test_views", *OF_TRAINING)
}
SCHEMA["recipe.test_views"] = text(None, "the recipe's test_views; see training.lr_tta")


@dataclass(frozen=True)
class Flag:
    """A flat flag of the demo, and what it sets in terms of SCHEMA. `const`: its value when it is given without one."""

    names: tuple[str, ...]
    help: str
    expand: Callable[[Any], dict[str, Any]]
    const: str | None = None
    optional: bool = False  # a value may follow

    @property
    def keys(self) -> set[str]:
        """The parameters that it sets."""
        return set(self.expand("x"))


def _same(key: str) -> Callable[[Any], dict[str, Any]]:
    return lambda value: {key: value}


def _dataset_dir(folder: str) -> dict[str, Any]:
    folder = folder.rstrip("/") or folder
    return {
        "data.train_dataset": f"{folder}/cifar_train.beton",
        "data.val_dataset": f"{folder}/cifar_test.beton",
        "data.root": folder,
    }


FLAGS = [
    Flag(("dataset-dir",), "folder of cifar_train.beton and cifar_test.beton (default data)", _dataset_dir),
    Flag(("log-dir",), "folder for logs and checkpoints (default runs/cifar)", _same("log.dir")),
    Flag(("batch-size",), "images per step, over all processes (resnet9: 512)", _same("training.batch_size")),
    Flag(("val-batch-size",), "images per batch in the test", _same("training.val_batch_size")),
    Flag(("epochs",), "passes over the training set (resnet9: 20)", _same("training.epochs")),
    Flag(("base-lr",), "learning rate (resnet9: 0.5)", _same("training.lr")),
    Flag(("momentum",), "momentum of SGD (resnet9: 0.9)", _same("training.momentum")),
    Flag(("wd",), "weight decay (resnet9: 5e-4)", _same("training.weight_decay")),
    Flag(("no-cuda",), "train on the CPU even if there is a GPU", _same("training.device"), const="cpu"),
    Flag(
        ("deterministic",),
        "on a GPU, use only algorithms that give the same bytes every time",
        _same("training.deterministic"),
        const="true",
    ),
    Flag(("seed",), "decides initialisation, order and augmentation (default 0)", _same("training.seed")),
    Flag(
        ("resume",),
        "resume from a checkpoint or log folder (default: the log folder)",
        _same("training.resume"),
        const="auto",
        optional=True,
    ),
    Flag(("dist-backend",), "cgx (compresses gradients), nccl, gloo or mpi (default nccl)", _same("comm.backend")),
    Flag(
        ("quantization-bits",),
        "bits per gradient value, with cgx (default 32: uncompressed)",
        _same("compression.bits"),
    ),
    Flag(
        ("quantization-bucket-size",),
        "gradient values that share one scale (default 1024)",
        _same("compression.bucket_size"),
    ),
    Flag(("local_rank", "local-rank"), "accepted for compatibility; ranks come from mpirun", lambda value: {}),
]
