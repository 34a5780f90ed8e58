"""Builds the extension module with kernels that run on the CPU; CUDA's headers and g++ are enough.

python tests/cuda/emulator/build.py build_ext --build-temp build/emulated/temp --build-lib build/emulated/lib

Everything else is as in setup.py. Calls of cuDNN or cuBLASLt have stand-ins here.
"""

import importlib.util
import os
import re
import shutil
import subprocess
from pathlib import Path

EMULATOR = Path(__file__).resolve().parent
ROOT = EMULATOR.parents[2]
LIBRARIES = re.compile(r'#include (<(cudnn|cublasLt)\.h>|"nn/cuda/conv/cudnn_\w+\.h")')

spec = importlib.util.spec_from_file_location("cgxffcv_setup", ROOT / "setup.py")
ours = importlib.util.module_from_spec(spec)
spec.loader.exec_module(ours)


def find_emulator(cuda):
    nvcc = shutil.which("nvcc") or "/usr/local/cuda/bin/nvcc"
    homes = [os.environ.get("CUDA_HOME", "/usr/local/cuda"), Path(nvcc).resolve().parents[1]]
    include = ours.header_dir("cuda_runtime.h", [*(f"{home}/include" for home in homes), *ours.system_dirs("include")])
    if include is None or shutil.which("g++") is None:
        cuda.why = "no cuda_runtime.h or no g++"
        return
    cuda.found, cuda.why = True, f"emulated on the CPU, with {include}"
    cuda.cflags = [f"-isystem{include}"]


class BuildEmulated(ours.BuildExt):
    """Threads as fibers; every access of a kernel is reported to the emulator's checks."""

    def configure(self):
        os.environ["CGXFFCV_CUDA"] = "1"
        return ours.configure(cuda=find_emulator)

    def choose_sources(self, parts):
        own = [path for path in ours.choose_sources(parts) if not LIBRARIES.search(path.read_text())]
        return own + sorted(EMULATOR.glob("*.cc"))

    def compile_command(self, source, parts, includes):
        if source.suffix not in (".cu", ".cc"):
            return ours.compile_command(source, parts, includes)
        flags = ["-std=gnu++17", "-g1", "-fPIC", "-fvisibility=hidden", "-pthread", "-ffp-contract=off"]
        flags += ["-fno-strict-aliasing", "-Wall", "-Wextra", "-Wno-unknown-pragmas"]
        flags += ["-Wno-missing-field-initializers", f"-I{EMULATOR}"]
        flags += ["-Werror"] if os.environ.get("CGXFFCV_WERROR") == "1" else []
        common = [*(part.macro for part in parts.values()), f"-I{ours.CSRC}"]
        common += [flag for part in parts.values() if part.found for flag in part.cflags]
        if source.suffix == ".cc":
            return ["g++", "-O2", *flags, *common]
        flags += ["-fsanitize=thread", "--param=tsan-instrument-func-entry-exit=0"]
        flags += ['-DCGXFFCV_CUDA_ARCHITECTURES="emulated"', *common]
        return ["g++", "-O1", *flags, "-include", "emulator.h", "-x", "c++"]

    def missing_parts(self, objects, cache):
        """Functions that its headers declare and this build lacks: they end the process if called."""
        symbols = {"-u": set(), "--defined-only": set()}
        for option, names in symbols.items():
            listing = ours.run("nm", option, "--format=posix", *map(str, objects)) or ""
            names.update(line.split()[0] for line in listing.splitlines() if line and not line.endswith(":"))
        declared = "".join(path.read_text() for path in ours.CSRC.rglob("*.h"))
        declared = set(re.findall(r"^[A-Za-z_][\w *]*?(\w+)\(", declared, re.M))
        missing = sorted((symbols["-u"] - symbols["--defined-only"]) & declared)
        if not missing:
            return []
        print(f"cgxffcv: not in this build: {', '.join(missing)}", flush=True)
        source = cache / "missing.c"
        source.write_text(
            "#include <stdio.h>\n#include <stdlib.h>\n"
            + "".join(f'void {n}(void) {{ fputs("{n} is not in this build\\n", stderr); abort(); }}\n' for n in missing)
        )
        subprocess.run(["gcc", "-fPIC", "-c", str(source), "-o", str(cache / "missing.o")], check=True)
        return [cache / "missing.o"]


if __name__ == "__main__":
    ours.main(BuildEmulated)
