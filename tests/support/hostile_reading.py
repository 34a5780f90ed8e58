"""A child of test_hostile_files.py: hostile_reading.py BEGIN END makes and reads the hostile files of these seeds. Each
must be refused with BetonError, or read as the model reads it: by Reader, by verify, and by Loader under each policy
for damaged images; within bounded memory, and in seconds. It prints how many ended in which way, and exits with 1 if
anything else happened; the file `seed` names the seed under way."""

import contextlib
import json
import os
import signal
import sys
from collections import Counter
from pathlib import Path

import beton_law
import beton_model as model
import numpy as np
from beton_files import package_value
from crafted_jpegs import GREY
from hostile_files import hostile_file

import cgxffcv
from cgxffcv import BetonError, Loader, Reader, beton
from cgxffcv.decoders import JSONDecoder

PIXELS = 1 << 21  # the limit of pixels here
MOST_BYTES = 12 * PIXELS + (64 << 20)  # SECURITY.md
SECONDS = 60  # for one file; nothing here comes near it
PATH = Path("hostile.beton")
REFUSED, UNKNOWN = "refused", "unknown"  # no value here is one of them


def attempt(read, *arguments, **options):
    """What it returns, or REFUSED; anything but a BetonError is passed on."""
    try:
        return read(*arguments, **options)
    except BetonError:
        return REFUSED


def peak():
    text = Path("/proc/self/status").read_text()
    return int(text.split("VmHWM:")[1].split()[0]) << 10


def parsed(text):
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return REFUSED


def as_read(field, value):
    """A value of the model's as Reader gives it; UNKNOWN if only a decoder can tell."""
    kind, _, argument = field
    if kind == "image" and value[0] != "raw":
        return UNKNOWN
    return parsed(value) if kind == "json" else package_value(kind, argument, value)


def same(one, other):
    if isinstance(one, np.ndarray) and isinstance(other, np.ndarray):
        return one.dtype == other.dtype and one.shape == other.shape and one.tobytes() == other.tobytes()
    return type(one) is type(other) and repr(one) == repr(other)


class Judge:
    def __init__(self, seed):
        self.file, self.found, self.seed = hostile_file(seed), [], seed
        PATH.write_bytes(self.file.data)

    def wrong(self, text):
        self.found.append(f"seed {self.seed}, {self.file.rule}: {text}")

    def reading(self):
        """How it ended, in one word."""
        reason = beton_law.reason_to_refuse(self.file.data)
        reader = attempt(Reader, PATH)
        report = beton.verify(PATH, num_workers=1)
        if (reason is not None) != (reader is REFUSED):
            self.wrong(f"opening: {'refused' if reader is REFUSED else 'opened'}, the law says {reason}")
            return "wrong"
        if reader is REFUSED:
            if report.ok or attempt(Loader, PATH, 2, num_workers=1) is not REFUSED:
                self.wrong("verify or Loader takes what Reader refuses")
            return "refused at opening"
        with reader:
            bad = self.values(reader)
        if {(problem.sample, problem.field) for problem in report.problems} != bad:
            self.wrong(f"verify found {report.problems}, Reader refused {sorted(bad)}")
        self.load(bad)
        return "refused at reading" if bad else "read"

    def values(self, reader):
        """Compares what Reader gives; (sample, field) of what it refuses."""
        self.fields, samples, _ = model.read(self.file.data)
        self.pixels = {
            (at, field[1]): value[1] * value[2]
            for at, sample in enumerate(samples)
            for field, value in zip(self.fields, sample, strict=True)
            if field[0] == "image"
        }
        self.rows = [{name: REFUSED for _, name, _ in self.fields} for _ in samples]
        bad = set()
        for index, sample in enumerate(samples):
            for field, value in zip(self.fields, sample, strict=True):
                name = field[1]
                got = self.rows[index][name] = attempt(reader.value, index, name)
                want = as_read(field, value)
                if got is REFUSED:
                    bad.add((index, name))
                    # a JPEG; JSON without its NUL; an empty value's byte that is not 0
                    allowed = want is UNKNOWN or want is REFUSED or field[0] == "json" or value == b""
                elif want is UNKNOWN:
                    allowed = got.shape == (value[2], value[1], 3) and (not self.file.sound or np.all(got == GREY))
                else:
                    allowed = same(got, want)
                if not allowed:
                    self.wrong(f"sample {index}, {name}: {got!r} for {want!r}")
        if self.file.sound is not None and self.file.sound == bool(bad):
            self.wrong(f"refused {sorted(bad)}")
        return bad

    def load(self, bad):
        """Both policies: an error for a bad value, or black images in place of damaged ones."""
        kinds = {name: kind for kind, name, _ in self.fields}
        sides = {(name, row[name].shape) for row in self.rows for name in kinds if isinstance(row[name], np.ndarray)}
        if len({name for name, _ in sides}) < len(sides):
            return  # images of several sizes make no batch
        pipelines = {name: [JSONDecoder()] for name, kind in kinds.items() if kind == "json"}
        black = all(kinds[name] == "image" and self.pixels[at, name] <= PIXELS for at, name in bad)
        for policy in ("raise", "zero"):
            outcome = attempt(self.batches, policy, pipelines)
            if outcome is REFUSED:
                if not bad or (policy == "zero" and black):
                    self.wrong(f"on_error={policy}: refused, and Reader refuses {sorted(bad)}")
            elif bad and (policy == "raise" or not black):
                self.wrong(f"on_error={policy}: loaded, and Reader refuses {sorted(bad)}")
            else:
                self.compare(policy, *outcome, len(bad))

    def batches(self, policy, pipelines):
        options = {"num_workers": 1, "drop_last": False, "arrays": "numpy", "pipelines": pipelines}
        with Loader(PATH, 2, on_error=policy, **options) as loader:
            names = [output.name for output in loader.outputs]
            rows = [row for batch in loader for row in zip(*batch, strict=True)]
            return names, rows, loader.stats()["blanked"]

    def compare(self, policy, names, rows, blanked, bad):
        if len(rows) != len(self.rows) or blanked != bad:
            self.wrong(f"on_error={policy}: {len(rows)} samples, {blanked} of them black, for {bad} bad ones")
        for want, got in zip(self.rows, rows, strict=False):
            for name, value in zip(names, got, strict=True):
                if not row_holds(value, want[name]):
                    self.wrong(f"on_error={policy}, {name}: {str(value)[:200]} for {str(want[name])[:200]}")


def row_holds(row, value):
    """True if a row of a batch is this value of Reader's: bytes are followed by zeros, what is refused is black."""
    if value is REFUSED:
        return not np.any(row)
    if isinstance(value, bytes):
        return row.tobytes().rstrip(b"\0") == value.rstrip(b"\0")
    if isinstance(row, np.ndarray) and not isinstance(value, np.ndarray):
        return same(row[0].item(), value)
    return same(row, value)


def main(begin, end):
    cgxffcv.set_max_image_pixels(PIXELS)
    counts, found, largest = Counter(), [], 0
    for seed in range(begin, end):
        Path("seed").write_text(str(seed))
        judge = Judge(seed)
        with contextlib.suppress(OSError):  # where this is allowed, the peak starts again
            Path("/proc/self/clear_refs").write_text("5")
        before = peak()
        signal.alarm(SECONDS)
        counts[judge.reading()] += 1
        signal.alarm(0)
        largest = max(largest, peak() - before)
        found += judge.found
    if largest > MOST_BYTES and "libasan" not in os.environ.get("LD_PRELOAD", ""):
        found.append(f"{largest} bytes of memory, {MOST_BYTES} allowed")
    print(json.dumps({"files": end - begin, **counts, "largest": largest}))
    print(*found[:40], sep="\n")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), int(sys.argv[2])))
