"""Builds small CUDA programs for the tests: with g++ and the emulator, or with nvcc for a GPU. One that uses more than
the device room names rooms in its first line, as C programs do (c_units.py)."""

import os
import shutil
import subprocess
from pathlib import Path

import c_units
from checkout import CSRC, ROOT, run_command

EMULATOR = ROOT / "tests" / "cuda" / "emulator"
C_SOURCES = [CSRC / "base/environment.c", CSRC / "base/status.c", CSRC / "device/cuda.c"]
CUDA_SOURCES = [CSRC / "device/probe.cu"]
MACHINE = [EMULATOR / f"{name}.cc" for name in ("block", "check", "memory", "runtime", "streams")]


def sources_of(program):
    """(C files, CUDA files) that it is linked with: of the rooms that it names, as in a build with CUDA."""
    if not program.read_text().startswith("// rooms: "):
        return C_SOURCES, CUDA_SOURCES
    found = c_units.sources_of(program)
    return [path for path in found if path.suffix == ".c"], [path for path in found if path.suffix == ".cu"]


def cuda_include():
    nvcc = shutil.which("nvcc") or "/usr/local/cuda/bin/nvcc"
    homes = [Path(os.environ.get("CUDA_HOME", "/usr/local/cuda")), Path(nvcc).resolve().parents[1]]
    found = [home / "include" for home in homes if (home / "include/cuda_runtime.h").is_file()]
    return found[0] if found else None


def why_not_emulated():
    """The reason why programs cannot be built for the emulator; '' if they can."""
    if shutil.which("g++") is None:
        return "no g++"
    return "" if cuda_include() else "no cuda_runtime.h of the CUDA toolkit"


def find_nvcc():
    return shutil.which("nvcc") or shutil.which("/usr/local/cuda/bin/nvcc")


def compile_object(command, source, directory):
    target = directory / f"{source.name}.o"
    subprocess.run([*command, "-c", str(source), "-o", str(target)], check=True, timeout=300)
    return str(target)


def build_emulated(program, directory):
    """Compiles as tests/cuda/emulator/build.py does."""
    include = ["-isystem", str(cuda_include()), f"-I{CSRC}", f"-I{EMULATOR}", f"-I{ROOT / 'tests/support'}"]
    machine = ["g++", "-O2", "-g", "-std=gnu++17", "-Wall", "-Wextra", "-Werror", *include]
    looks = ["-Wno-unknown-pragmas", "-fno-strict-aliasing", "-ffp-contract=off"]
    watched = ["-fsanitize=thread", "--param=tsan-instrument-func-entry-exit=0"]
    language = ['-DCGXFFCV_CUDA_ARCHITECTURES="emulated"', "-include", "emulator.h", "-x", "c++"]
    kernels = [*machine, "-O1", *looks, *watched, *language]  # the last -O counts
    c = ["gcc", "-O1", "-g", "-std=gnu11", "-D_GNU_SOURCE", "-Wall", "-Wextra", "-Werror", *include]
    c_sources, cuda_sources = sources_of(program)
    objects = [compile_object(kernels, source, directory) for source in [program, *cuda_sources]]
    objects += [compile_object(machine, source, directory) for source in MACHINE]
    objects += [compile_object(c, source, directory) for source in c_sources]
    target = directory / program.stem
    subprocess.run(["g++", *objects, "-o", str(target), "-pthread"], check=True, timeout=300)
    return target


def build_for_gpu(program, directory):
    include = [f"-I{CSRC}", f"-I{EMULATOR}", f"-I{ROOT / 'tests/support'}"]
    c_sources, cuda_sources = sources_of(program)
    target = directory / f"{program.stem}_gpu"
    objects = [
        compile_object(
            ["gcc", "-O1", "-g", "-std=gnu11", "-D_GNU_SOURCE", *include, "-isystem", str(cuda_include())],
            source,
            directory,
        )
        for source in c_sources
    ]
    command = [find_nvcc(), "-std=c++17", "-O2", "-arch=native", '-DCGXFFCV_CUDA_ARCHITECTURES="native"', *include]
    subprocess.run(
        [*command, str(program), *map(str, cuda_sources), *objects, "-o", str(target)], check=True, timeout=300
    )
    return target


def run(program, *arguments, **environment):
    return run_command(program, *arguments, status=None, **environment)
