#!/usr/bin/env python3
"""Mutation testing: changes the code in one place at a time; a change that no test detects is a gap in the tests.

    tools/mutate.py LIST                  the mutations of a file, see below
    tools/mutate.py --random N [--seed S] [--room ROOM]...     N places drawn at random
    tools/mutate.py ... --dry-run         only shows what would be changed

Run it in a checkout that has been built in place and has no uncommitted changes. A list has one block per mutation,
separated by empty lines; the old text must occur exactly once in the file (lines are joined by newlines):

    csrc/base/pool.c
    - old text
    + new text
    ? tests/c/test_units.py -k base       (optional: pytest's arguments; otherwise those of the room, below)

The file is changed, the extension is rebuilt if the tests need it, the tests run up to their first failure, and the
file is restored. A change that does not compile does not count. The result is a table by rooms and the survivors; exit
code 1 if there are any. An equivalent mutation also survives: recognising it is left to the reader.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import shlex
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TIMEOUT = 600  # seconds; tests that hang have detected the change, too
UNITS = "tests/c/test_units.py"
# The tests for a mutation that names none: the room's own first, since they are the fastest.
TESTS = {
    "base": [f"{UNITS} -k 'base or guard or atomic'", "tests/crash tests/py/test_fork.py"],
    "beton": [f"{UNITS} -k beton", "tests/fuzz tests/py -k beton", "tests/crash/test_cut_files.py"],
    "image": [f"{UNITS} -k loader", "tests/py/test_beton_images.py", "tests/fuzz -k 'jpeg or huffman'"],
    "augment": [f"{UNITS} -k loader", "tests/py/test_augment.py"],
    "loader": [f"{UNITS} -k loader", "tests/py -k 'loader or selection'"],
    "comm": [f"{UNITS} -k comm", "tests/mpi/test_comm.py"],
    "quant": [f"{UNITS} -k quantize", "tests/py/test_quantize.py"],
    "allreduce": [f"{UNITS} -k allreduce", "tests/py -k allreduce"],
    "nn": ["tests/py -k 'test_nn'"],
    "optim": ["tests/py -k 'optim or muon'"],
    "train": [f"{UNITS} -k 'trainer or feed'", "tests/py -k 'train or resuming'"],
    "python": ["tests/py -k 'beton or loader or nn or optim or quantize or trainer or stub'"],
    "cgxffcv": ["tests/py"],
}
NO_BUILD = ("tests/c/", "tests/fuzz -k 'jpeg or huffman'")  # they compile what they need themselves


@dataclass
class Mutation:
    file: str
    old: str
    new: str
    tests: list[str]

    @property
    def room(self) -> str:
        parts = Path(self.file).parts
        return parts[1] if parts[0] == "csrc" else parts[0]

    def __str__(self) -> str:
        return f"{self.file}: {' '.join(self.old.split())[:70]!r} -> {' '.join(self.new.split())[:70]!r}"


def read_list(path: Path) -> list[Mutation]:
    """The mutations of a list."""
    out = []
    for block in re.split(r"\n\s*\n", path.read_text().strip()):
        lines = [line for line in block.splitlines() if not line.startswith("#")]
        if not lines:
            continue
        parts: dict[str, list[str]] = {"-": [], "+": [], "?": []}
        for line in lines[1:]:
            parts[line[0]].append(line[2:])
        out.append(Mutation(lines[0].strip(), "\n".join(parts["-"]), "\n".join(parts["+"]), parts["?"]))
    return out


SWAPS = [
    (r" < ", " <= "),
    (r" <= ", " < "),
    (r" > ", " >= "),
    (r" >= ", " > "),
    (r" == ", " != "),
    (r" != ", " == "),
    (r" && ", " || "),
    (r" \|\| ", " && "),
    (r" \+ 1\b", ""),
    (r" - 1\b", ""),
    (r"\btrue\b", "false"),
    (r"\bfalse\b", "true"),
    (r"\bTrue\b", "False"),
    (r"\bFalse\b", "True"),
    (r" and ", " or "),
    (r" or ", " and "),
    (r"\bif not ", "if "),
    (r" \+ ", " - "),
    (r" - ", " + "),
    (r"\b0\b", "1"),
    (r"\b1\b", "2"),
    (r"^(\s+)TRY(?:_GOTO)?\(.*\);$", r"\1;"),
    (r"^(\s+)if \(.*\) (?:FAIL|return)\b.*;$", r"\1;"),
    (r"^(\s+)raise .*$", r"\1pass"),
]


STRING = re.compile(r'"(?:\\.|[^"\\\n])*"')


def code_lines(text: str, c: bool) -> list[str]:
    """The lines that are code; comments and docstrings are left out, approximately."""
    out, inside = [], False
    for line in text.split("\n"):
        start = line.strip()
        if c:
            was, inside = (
                inside,
                (inside or "/*" in line) and "*/" not in line[line.rfind("/*") + 2 if "/*" in line else 0 :],
            )
            if was or start.startswith(("//", "/*", "#")):
                continue
        else:
            quotes = line.count('"""')
            was, inside = inside, inside ^ (quotes % 2 == 1)
            if was or quotes or start.startswith(("#", "import ", "from ", "@")):
                continue
        out.append(line)
    return out


def draw(count: int, seed: int, rooms: list[str]) -> list[Mutation]:
    """Random mutations, spread evenly over the rooms."""
    rng = random.Random(seed)
    files = [
        path
        for path in sorted([*ROOT.glob("csrc/**/*.c"), *ROOT.glob("cgxffcv/**/*.py")])
        if "cuda" not in path.parts and not path.stem.endswith("_none") and "bench" not in path.parts
    ]
    by_room: dict[str, list[Path]] = {}
    for path in files:
        relative = str(path.relative_to(ROOT))
        room = Mutation(relative, "", "", []).room
        if room in TESTS and (not rooms or room in rooms):
            by_room.setdefault(room, []).append(path)
    out: list[Mutation] = []
    while len(out) < count:
        room = list(by_room)[len(out) % len(by_room)]
        path = rng.choice(by_room[room])
        text = path.read_text()
        choices = [
            (line, swap)
            for line in code_lines(text, path.suffix in (".c", ".h"))
            for swap in SWAPS
            if re.search(swap[0], STRING.sub("", line)) and text.count(line) == 1
        ]
        if choices:
            line, (pattern, replacement) = rng.choice(choices)
            new = swap_first(line, pattern, replacement)
            out.append(Mutation(str(path.relative_to(ROOT)), line, new, []))
    return out


def swap_first(line: str, pattern: str, replacement: str) -> str:
    """The line with the first match outside of strings replaced."""
    strings = STRING.findall(line)
    bare = STRING.sub("\0", line)
    bare = re.sub(pattern, replacement, bare, count=1)
    return (
        re.sub("\0", lambda _: strings.pop(0), bare) if bare.count("\0") == len(strings) else bare.replace("\0", '""')
    )


def run(command: list[str]) -> tuple[int, str]:
    """Runs a command; returns its exit code (124: timed out) and its output."""
    environ = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env=environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        out, _ = process.communicate(timeout=TIMEOUT)
        return process.returncode, out
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, 9)
        process.communicate()
        return 124, "timed out"


def build() -> bool:
    return run([sys.executable, "setup.py", "-q", "build_ext", "--inplace"])[0] == 0


def verdict(mutation: Mutation) -> str:
    """ "caught by ...", "SURVIVED", or "does not compile"; the file is as it was afterwards."""
    path = ROOT / mutation.file
    before = path.read_bytes()
    text = before.decode()
    if text.count(mutation.old) != 1:
        return f"the old text occurs {text.count(mutation.old)} times"
    tests = mutation.tests or TESTS[mutation.room]
    built = False
    try:
        path.write_text(text.replace(mutation.old, mutation.new))
        for arguments in tests:
            if path.suffix in (".c", ".h") and not built and not arguments.startswith(NO_BUILD):
                built = True
                if not build():
                    return "does not compile"
            code, out = run(
                [
                    sys.executable,
                    "-m",
                    "pytest",
                    "-x",
                    "-q",
                    "-p",
                    "no:cacheprovider",
                    "-m",
                    "not long",
                    *shlex.split(arguments),
                ]
            )
            if code == 124:
                return "caught by a timeout"
            if code != 0:
                if ": error: " in out and "CalledProcessError" in out:
                    return "does not compile"
                failed = re.search(r"^(?:FAILED|ERROR) (\S+)", out, re.M)
                return f"caught by {failed.group(1) if failed else out[-200:]}"
        return "SURVIVED"
    finally:
        path.write_bytes(before)
        if built and not build():
            raise SystemExit(f"the unchanged code does not build: see {mutation.file}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("list", nargs="?", type=Path)
    parser.add_argument("--random", type=int, metavar="N")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--room", action="append", default=[], choices=sorted(TESTS))
    parser.add_argument("--dry-run", action="store_true")
    options = parser.parse_args()
    if (options.list is None) == (options.random is None):
        parser.error("give a LIST, or --random N")
    mutations = read_list(options.list) if options.list else draw(options.random, options.seed, options.room)
    mutations = [mutation for mutation in mutations if not options.room or mutation.room in options.room]
    tried, caught, survivors = Counter(), Counter(), []
    for number, mutation in enumerate(mutations, 1):
        result = "not run" if options.dry_run else verdict(mutation)
        print(f"{number}/{len(mutations)} {mutation}: {result}", flush=True)
        if result == "SURVIVED" or result.startswith("caught"):
            tried[mutation.room] += 1
            caught[mutation.room] += result != "SURVIVED"
        if result == "SURVIVED":
            survivors.append(mutation)
    print("\n| room | tried | caught | survived |\n|---|---|---|---|")
    for room in [*sorted(tried), "all"]:
        counts = [sum(counter.values()) if room == "all" else counter[room] for counter in (tried, caught)]
        print(f"| {room} | {counts[0]} | {counts[1]} | {counts[0] - counts[1]} |")
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main())
