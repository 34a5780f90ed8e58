"""Fuzz targets for what is parsed in Python: configuration files, checkpoints, CIFAR-10's pickles.

python tests/fuzz/fuzz_python.py TARGET [libFuzzer's arguments: corpus folders, -runs=N, ...]     with Atheris
python tests/fuzz/fuzz_python.py --replay TARGET FOLDER MUTATIONS                                 without it

Each target takes any bytes and allows for success or the package's own errors; any other exception is a finding.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import struct
import sys
import tempfile
from pathlib import Path

with contextlib.suppress(ImportError):
    import atheris

if "atheris" in sys.modules and "--replay" not in sys.argv:
    with atheris.instrument_imports(include=["cgxffcv", "yaml", "json"], enable_loader_override=False):
        import yaml  # noqa: F401

        from cgxffcv import checkpoint, cifar
        from cgxffcv.app import config
        from cgxffcv.cifar import plainpickle
else:
    from cgxffcv import checkpoint, cifar
    from cgxffcv.app import config
    from cgxffcv.cifar import plainpickle

import numpy as np

from cgxffcv.errors import ConfigError, DataError

FOLDER = Path("/dev/shm" if os.path.isdir("/dev/shm") else tempfile.gettempdir())
FILE = FOLDER / f"fuzzed-{os.getpid()}"
MOST_BYTES = 1 << 16


def fuzz_yaml(data: bytes) -> None:
    """A file is refused with a list of mistakes, or gives a configuration whose text gives the same one again."""
    FILE.write_bytes(data)
    try:
        values = config.load(["--config-file", str(FILE)], environ={})
    except ConfigError as error:
        assert error.problems and all(isinstance(text, str) and text for text in error.problems)
        return
    text = values.to_yaml()
    FILE.write_text(text, encoding="utf-8")
    again = config.load(["--config-file", str(FILE)], environ={})
    for key in config.SCHEMA:
        assert key.endswith(".resume") or again[key] == values[key], (key, values[key], again[key])


def _equal(left: object, right: object) -> bool:
    if isinstance(left, np.ndarray) and isinstance(right, np.ndarray):
        return (left.dtype, left.shape, left.tobytes()) == (right.dtype, right.shape, right.tobytes())
    return type(left) is type(right) and repr(left) == repr(right)


def fuzz_safetensors(data: bytes) -> None:
    """A file is refused, or gives a state that is the same when it is saved and loaded again."""
    FILE.write_bytes(data)
    try:
        state = checkpoint.load(FILE)
    except checkpoint.CheckpointError as error:
        assert str(FILE) in str(error)
        return
    checkpoint.save(FILE, state)
    again = checkpoint.load(FILE)
    assert list(again) == list(state) or set(again) == set(state)
    assert all(_equal(again[name], state[name]) for name in state)


def fuzz_pickle(data: bytes) -> None:
    """Read as a pickle, as one of an array of three columns, as a batch of CIFAR-10."""
    with contextlib.suppress(plainpickle.PickleError):
        value = plainpickle.parse(data)
        for item in value.values() if isinstance(value, dict) else [value]:
            assert plainpickle.uint8_array(item, 3).shape[1] == 3
    with contextlib.suppress(DataError):
        cifar.from_python(data, "data_batch_1", "fuzz", lambda text: None)


TARGETS = {"yaml": fuzz_yaml, "safetensors": fuzz_safetensors, "pickle": fuzz_pickle}


def mutate(rng: random.Random, data: bytes, others: list[bytes]) -> bytes:
    """One to four changes: bytes removed, doubled, inserted from another file, or overwritten."""
    out = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        at, length = rng.randrange(len(out) + 1), rng.randint(1, 16)
        kind = rng.randrange(6)
        if kind == 0:
            del out[at : at + length]
        elif kind == 1:
            out[at:at] = out[at : at + length] * rng.randint(1, 3)
        elif kind == 2:
            other = rng.choice(others)
            start = rng.randrange(len(other) + 1)
            out[at:at] = other[start : start + length]
        elif kind == 3 and at < len(out):
            out[at] ^= 1 << rng.randrange(8)
        else:
            out[at : at + 1] = bytes([rng.choice(b'{}[]:,"-0159eE.!&*#|>%\n\t \x00\xff\x80nulltrue')])
    return bytes(out[:MOST_BYTES])


NODES = [
    None,
    True,
    -1,
    0,
    1,
    2**63,
    10**400,
    0.5,
    1e999,
    "",
    "F32",
    "BF16",
    "\ud800",
    [],
    [0],
    [0, 24],
    {},
    [2, 3],
    {"dtype": "U8", "shape": [], "data_offsets": [0, 1]},
    "[" * 2000,
    "1e999",
    "9" * 5000,
]


def _mutate_node(rng: random.Random, node: object) -> object:
    """Another value in a random place of a tree of JSON values."""
    if isinstance(node, dict) and node and rng.random() < 0.8:
        key = rng.choice(list(node))
        value = node.pop(key)
        if rng.random() < 0.9:
            node[key if rng.random() < 0.9 else rng.choice([f"{key}x", "__metadata__", "w"])] = _mutate_node(rng, value)
        return node
    if isinstance(node, list) and node and rng.random() < 0.8:
        node[rng.randrange(len(node))] = _mutate_node(rng, rng.choice(node))
        return node
    if isinstance(node, int) and rng.random() < 0.5:
        return node + rng.choice([-1, 1, 4])
    return json.loads(json.dumps(rng.choice(NODES)))


def mutate_safetensors(data: bytes, most: int, seed: int) -> bytes:
    """A change of the header as JSON, with its length corrected, since hardly any other passes the first checks."""
    rng = random.Random(seed)
    try:
        (length,) = struct.unpack("<Q", data[:8])
        header, body = json.loads(data[8 : 8 + length]), data[8 + length :]
    except (struct.error, ValueError, RecursionError):
        header, body = {}, data[:64]
    for _ in range(rng.randint(1, 3)):
        header = _mutate_node(rng, header)
    if rng.random() < 0.3:
        body = body[: rng.randrange(len(body) + 1)] + bytes(rng.randrange(4))
    text = json.dumps(header).encode()
    if rng.random() < 0.2:
        text = mutate(rng, text, [text])
    return (struct.pack("<Q", len(text)) + text + body)[:most]


def _custom_mutator(data: bytes, most: int, seed: int) -> bytes:
    return atheris.Mutate(data, most) if seed % 4 == 0 else mutate_safetensors(data, most, seed)


def replay(target: str, folder: Path, mutations: int) -> int:
    """Runs every file of the folder, and that many seeded mutations of each; the number of executions."""
    seeds = [path.read_bytes() for path in sorted(folder.iterdir())]
    rng, count = random.Random(1), 0
    for seed in seeds:
        mutants = [mutate(rng, seed, seeds) for _ in range(mutations)]
        if target == "safetensors":
            mutants[::2] = [mutate_safetensors(seed, MOST_BYTES, rng.randrange(2**32)) for _ in mutants[::2]]
        for data in [seed, *mutants]:
            count += 1
            try:
                TARGETS[target](data)
            except Exception as error:
                error.args = (*error.args, f"for {data!r}")
                raise
    return count


def main() -> None:
    try:
        if sys.argv[1] == "--replay":
            print(replay(sys.argv[2], Path(sys.argv[3]), int(sys.argv[4])), "executions")
            return
        one_input = TARGETS[sys.argv.pop(1)]
        own = {"custom_mutator": _custom_mutator} if one_input is fuzz_safetensors else {}
        atheris.Setup(sys.argv, one_input, **own)
        atheris.Fuzz()
    finally:
        FILE.unlink(missing_ok=True)


if __name__ == "__main__":
    main()
