"""Programs of C over rooms of the core, compiled as in a build without optional libraries.

A program's first line names its rooms, and files of libraries that it has all the same:

// rooms: base beton image, with image/jpeg.c
"""

import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from checkout import CSRC, ROOT

FLAGS = ["-std=gnu11", "-D_GNU_SOURCE", "-O1", "-g", "-pthread", "-ffp-contract=off", "-Wall", "-Wextra", "-Werror"]
SANITIZE = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
INCLUDE = [f"-I{CSRC}", f"-I{ROOT / 'tests/support'}"]
# As in setup.py: what a file may use is in the end of its name.
AVX2 = ["-mavx2", "-mfma", "-mf16c", "-mbmi2"]
AVX512 = [*AVX2, "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl"]
ISA_FLAGS = {"_avx2": AVX2, "_avx512": AVX512, "_avx512bf16": [*AVX512, "-mavx512bf16"]}
LIBRARY = re.compile(r"^#include <(nccl|jpeglib|cuda|cudnn|cublas|oneapi/)", re.M)


def sources(*rooms, others=()):
    """The C files of each room that need no library, and `others` ("comm/mpi.c") in place of their twins without."""
    found = [
        path
        for room in rooms
        for path in sorted((CSRC / room).rglob("*.c"))
        if "cuda" not in path.relative_to(CSRC / room).parts and not LIBRARY.search(path.read_text())
    ]
    other = [CSRC / name for name in others]
    twins = {path.with_name(f"{path.stem}_none.c") for path in other}
    return [path for path in found if path not in twins and not _has_twin(path)] + other


def _has_twin(path):
    """Of its own: that of a file of kernels beside it is not."""
    return path.with_name(f"{path.stem}_none.c").exists() and not path.with_suffix(".cu").exists()


def sources_of(program):
    """Those that its first line names, by room."""
    first = program.read_text().splitlines()[0]
    assert first.startswith("// rooms: "), first
    rooms, _, others = first.removeprefix("// rooms: ").partition(", with ")
    return sources(*rooms.split(), others=others.split())


class LinkError(Exception):
    """What the linker said."""


class Compiler:
    """Compiles into a folder, each source once; the linker then takes from a library what a program needs."""

    def __init__(self, folder, *flags):
        self.folder, self.flags, self._objects = folder, [*FLAGS, *flags], {}

    def _object(self, source):
        if source not in self._objects:
            target = self.folder / f"{source.relative_to(ROOT).as_posix().replace('/', '.')}.o"
            isa = next((flags for suffix, flags in ISA_FLAGS.items() if source.stem.endswith(suffix)), [])
            command = ["gcc", *self.flags, *isa, *INCLUDE, "-c", str(source), "-o", str(target)]
            subprocess.run(command, check=True)
            self._objects[source] = str(target)
        return self._objects[source]

    def program(self, main, *more, link=("-lm",)):
        """The program of `main` and of `more` with what they use of the rooms that `main` names."""
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
