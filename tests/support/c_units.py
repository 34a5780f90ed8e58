"""C programs over rooms of the core, compiled as in a build without optional libraries.

A program's first line names its rooms, and optional parts (setup.py's) or single files that it has nevertheless:

// rooms: base beton image, with jpeg
"""

import importlib.util
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from checkout import CSRC, ROOT

spec = importlib.util.spec_from_file_location("cgxffcv_setup", ROOT / "setup.py")
ours = importlib.util.module_from_spec(spec)
spec.loader.exec_module(ours)

FLAGS = ["-std=gnu11", "-D_GNU_SOURCE", "-O1", "-g", "-pthread", "-ffp-contract=off", "-Wall", "-Wextra", "-Werror"]
SANITIZE = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
INCLUDE = [f"-I{CSRC}", f"-I{ROOT / 'tests/support'}"]


def sources(*rooms, others=()):
    """The files of each room that a build without optional parts, except those in `others`, compiles, and single
    files."""
    parts = ours.features()
    for name in others:
        if name in parts:
            parts[name].found = True
    folders = {CSRC / room for room in rooms}
    chosen = [path for path in ours.choose_sources(parts) if folders & set(path.parents)]
    return chosen + [CSRC / name for name in others if name not in parts]


def sources_of(program):
    """The sources that the program's first line names, by room."""
    first = program.read_text().splitlines()[0]
    assert first.startswith("// rooms: "), first
    rooms, _, others = first.removeprefix("// rooms: ").partition(", with ")
    return sources(*rooms.split(), others=others.split())


class LinkError(Exception):
    """With the linker's output."""


class Compiler:
    """Compiles each source once into a folder; the linker then takes what a program needs from a library."""

    def __init__(self, folder, *flags):
        self.folder, self.flags, self._objects = folder, [*FLAGS, *flags], {}

    def _object(self, source):
        if source not in self._objects:
            target = self.folder / f"{source.relative_to(ROOT).as_posix().replace('/', '.')}.o"
            isa = next((flags for suffix, flags in ours.ISA_FLAGS.items() if source.stem.endswith(suffix)), [])
            command = ["gcc", *self.flags, *isa, *INCLUDE, "-c", str(source), "-o", str(target)]
            subprocess.run(command, check=True)
            self._objects[source] = str(target)
        return self._objects[source]

    def program(self, main, *more, link=("-lm",)):
        """Links `main` and `more` with what they use of the rooms that `main` names; the program."""
        with ThreadPoolExecutor() as pool:
            own = list(pool.map(self._object, [main, *more]))
            library = list(pool.map(self._object, sources_of(main)))
        archive, target = self.folder / f"{main.stem}.a", self.folder / main.stem
        subprocess.run(["ar", "rcs", str(archive), *library], check=True)
        command = ["gcc", *self.flags, *own, str(archive), "-o", str(target), *link]
        done = subprocess.run(command, check=False, stderr=subprocess.PIPE, text=True)
        if done.returncode != 0:
            raise LinkError(done.stderr)
        return target


if __name__ == "__main__":
    print(*sources_of(Path(sys.argv[1])), sep="\n")
