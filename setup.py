"""Builds the one extension module, _cgxffcv: finds the optional libraries, compiles what changed, links.

Switches (environment): CGXFFCV_CUDA, CGXFFCV_MPI, CGXFFCV_NCCL, CGXFFCV_ONEDNN, CGXFFCV_JPEG = auto | 0 | 1;
CGXFFCV_CUDA_ARCH (for example "90" or "75;80;90"; unset: what this machine's GPUs need, or 75;80;90 without a GPU),
CGXFFCV_CUDA_QUICK=1 (compiles kernels ten times as fast, but they run slowly: to check that they compile),
CGXFFCV_DEBUG=1, CGXFFCV_SANITIZE=address,undefined, CGXFFCV_WERROR=1. `auto` uses what it finds and prints a table;
`1` stops with the package to install if the part is missing. CUDA kernels take minutes: without a GPU and without
CGXFFCV_CUDA_ARCH, `auto` leaves them out.
For developers: tests/cuda/emulator/build.py compiles the kernels with g++, to run on the CPU.
"""

import functools
import hashlib
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
CSRC = ROOT / "csrc"

WARNINGS = ["-Wall", "-Wextra", "-Wconversion", "-Wshadow", "-Wvla", "-Wstrict-prototypes", "-Wmissing-prototypes"]
# The quantiser's bytes depend on every operation being rounded by itself: no contraction, no fast-math.
C_FLAGS = ["-std=gnu11", "-D_GNU_SOURCE", "-fvisibility=hidden", "-fPIC", "-pthread", "-ffp-contract=off"]
C_FLAGS += ["-fno-math-errno", "-fno-trapping-math"]
# Kernels of these folders give the same bytes as the host; all others are as fast as they can be.
UNCONTRACTED = {"quant", "allreduce"}
AVX2 = ["-mavx2", "-mfma", "-mf16c", "-mbmi2"]
AVX512 = ["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", *AVX2]
ISA_FLAGS = {"_avx2": AVX2, "_avx512bf16": [*AVX512, "-mavx512bf16"], "_avx512": AVX512}


@dataclass
class Feature:
    """An optional part: the sources of a build that has it, the twins of a build that lacks it, flags."""

    name: str
    package: str
    sources: list[str]
    without: list[str]
    found: bool = False
    why: str = ""
    cflags: list[str] = field(default_factory=list)
    libs: list[str] = field(default_factory=list)
    note: str = ""

    @property
    def switch(self):
        return f"CGXFFCV_{self.name.upper()}"

    @property
    def macro(self):
        return f"-DCGXFFCV_WITH_{self.name.upper()}={int(self.found)}"


def features():
    return {
        "mpi": Feature(
            "mpi", "nothing is needed", ["comm/mpi.c", "comm/mpi_world.c", "comm/mpi_library.c"], ["comm/mpi_none.c"]
        ),
        "onednn": Feature(
            "onednn", "pip install onednn-devel-cpu-gomp onednn-cpu-gomp", ["nn/cpu/dnnl*.c"], ["nn/cpu/none.c"]
        ),
        "jpeg": Feature("jpeg", "apt install libjpeg-dev", ["image/jpeg.c"], ["image/jpeg_none.c"]),
        "cuda": Feature(
            "cuda",
            "install the CUDA toolkit 13 and cuDNN 9 (apt install cuda-toolkit-13-0 libcudnn9-dev-cuda-13)",
            ["device/cuda.c", "nn/cuda/**/*.c", "optim/cuda/*.c", "quant/cuda/*.c", "**/*.cu"],
            ["device/none.c", "*/cuda_none.c", "comm/window*_none.c", "allreduce/device/*_none.c", "train/*_none.c"],
        ),
        "nccl": Feature("nccl", "apt install libnccl-dev", ["comm/nccl.c"], ["comm/nccl_none.c"]),
    }


def run(*command):
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError:
        return None
    return done.stdout if done.returncode == 0 else None


def header_dir(name, candidates):
    for directory in candidates:
        if directory and (Path(directory) / name).is_file():
            return Path(directory)
    return None


def library_dir(pattern, candidates):
    for directory in candidates:
        if directory and any(Path(directory).glob(pattern)):
            return Path(directory)
    return None


def system_dirs(kind):
    multiarch = sysconfig.get_config_var("MULTIARCH") or ""
    bases = ["/usr/local", "/usr"]
    return [f"{base}/{kind}/{multiarch}" for base in bases if multiarch] + [f"{base}/{kind}" for base in bases]


def find_mpi(mpi):
    if sys.maxsize < 2**32 or sys.byteorder != "little":
        mpi.why = "csrc/comm/mpi_library.h supports MPI only on 64-bit little-endian processors"
        return
    mpi.found, mpi.why = True, "its library is opened when ranks need it"


def find_onednn(onednn):
    # pip puts headers and libraries below the prefix or, with build isolation, below the path of the isolated build.
    prefixes = [os.environ.get("DNNLROOT"), sys.prefix]
    prefixes += [str(parent) for entry in sys.path for parent in list(Path(entry or ".").parents)[:3]]
    include = header_dir("oneapi/dnnl/dnnl.h", [f"{p}/include" for p in prefixes if p] + system_dirs("include"))
    library = library_dir("libdnnl.so.3*", [f"{p}/lib" for p in prefixes if p] + system_dirs("lib"))
    if include is None or library is None:
        onednn.why = "no oneapi/dnnl/dnnl.h or libdnnl.so.3 of oneDNN 3"
        return
    onednn.found, onednn.why = True, str(library)
    onednn.cflags = [f"-I{include}"]
    # The library is in PREFIX/lib, the module in PREFIX/lib/pythonX.Y/site-packages, or in a source tree.
    shared = sorted(library.glob("libdnnl.so.3*"))[0]
    onednn.libs = [str(shared), "-Wl,-rpath,$ORIGIN/../..", f"-Wl,-rpath,{sys.prefix}/lib"]


def find_jpeg(jpeg):
    include = header_dir("jpeglib.h", [os.environ.get("CGXFFCV_JPEG_INCLUDE"), *system_dirs("include")])
    library = library_dir("libjpeg.so", [os.environ.get("CGXFFCV_JPEG_LIB"), *system_dirs("lib")])
    if include is None or library is None:
        jpeg.why = "no jpeglib.h or libjpeg.so"
        return
    if "jpeg_crop_scanline" not in (include / "jpeglib.h").read_text(errors="replace"):
        jpeg.why = f"{include}/jpeglib.h is not libjpeg-turbo's"
        return
    jpeg.found, jpeg.why = True, str(library)
    jpeg.cflags, jpeg.libs = [f"-I{include}"], [f"-L{library}", "-ljpeg", f"-Wl,-rpath,{library}"]


def find_cuda(cuda):
    nvcc = os.environ.get("NVCC") or shutil.which("nvcc") or shutil.which("/usr/local/cuda/bin/nvcc")
    if nvcc is None:
        cuda.why = "no nvcc on PATH or in /usr/local/cuda"
        return
    if os.environ.get(cuda.switch, "auto") == "auto" and not os.environ.get("CGXFFCV_CUDA_ARCH") and not gpu_here():
        cuda.why = "no GPU here; CGXFFCV_CUDA=1 builds it anyway (about 9 minutes on 2 cores)"
        return
    home = Path(nvcc).resolve().parents[1]
    includes = [home / "include", *home.glob("targets/*/include"), *map(Path, system_dirs("include"))]
    if header_dir("cudnn.h", includes) is None:
        cuda.why = "found nvcc, but no cudnn.h of cuDNN 9"
        return
    cuda.found, cuda.why = True, nvcc
    cuda.cflags = [f"-isystem{include}" for include in includes if include.is_dir() and home in include.parents]
    directories = [d for d in (home / "lib64", *home.glob("targets/*/lib")) if d.is_dir()]
    cuda.libs = [f"-L{d}" for d in directories] + [f"-Wl,-rpath,{d}" for d in directories]
    cuda.libs += ["-lcudart_static"]  # cuBLASLt, cuDNN and NCCL are opened when they are needed
    because = "there is no GPU" if not gpu_here() else "the GPUs here"
    because = "CGXFFCV_CUDA_ARCH" if os.environ.get("CGXFFCV_CUDA_ARCH") else because
    cuda.note = f"{'kernels':<10} for {';'.join(cuda_architectures())} ({because}): built now, "
    cuda.note += "quickly, but slow to run (CGXFFCV_CUDA_QUICK=1)" if quick_kernels() else "minutes each on 2 cores"
    cuda.note += "; CGXFFCV_CUDA_ARCH=90 builds one, CGXFFCV_CUDA=0 none"


def find_nccl(nccl, cuda):
    if not cuda.found:
        nccl.why = "needs CUDA"
    elif header_dir("nccl.h", system_dirs("include") + [f[len("-isystem") :] for f in cuda.cflags]) is None:
        nccl.why = "no nccl.h"
    elif not (CSRC / "comm/nccl.c").exists():
        nccl.why = "this version has no NCCL sources yet"
    else:
        nccl.found, nccl.why = True, "nccl.h; the library is loaded when it is needed"


def configure(**finders):
    """Finds each optional part (with its function in `finders`, if any), obeys the switches, prints the table."""
    parts = features()
    known = {"mpi": find_mpi, "onednn": find_onednn, "jpeg": find_jpeg, "cuda": find_cuda}
    known["nccl"] = lambda part: find_nccl(part, parts["cuda"])
    for name, part in parts.items():
        wish = os.environ.get(part.switch, "auto")
        if wish not in ("auto", "0", "1"):
            sys.exit(f"{part.switch} must be auto, 0 or 1, not {wish!r}")
        if wish == "0":
            part.why = f"switched off by {part.switch}=0"
            continue
        finders.get(name, known[name])(part)
        if wish == "1" and not part.found:
            sys.exit(f"{part.switch}=1, but {part.why}. Remedy: {part.package}")
    for part in parts.values():
        print(f"cgxffcv: {part.name:<7} {'found' if part.found else 'not found':<10} {part.why}", flush=True)
        if part.note:
            print(f"cgxffcv: {part.name:<7} {part.note}", flush=True)
    return parts


def check_compiler(compiler):
    """Ends the build before it begins, with the package to install, if nothing could be compiled."""
    if shutil.which(compiler[0]) is None:
        sys.exit(f"cgxffcv: there is no C compiler {compiler[0]!r} here. Remedy: apt install gcc libc6-dev (or set CC)")
    python = f"python{sys.version_info.major}.{sys.version_info.minor}-dev"
    for header, package in (("stdio.h", "gcc libc6-dev"), ("Python.h", f"{python} (or python3-dev)")):
        command = [*compiler, "-E", "-x", "c", f"-I{sysconfig.get_path('include')}", "-", "-o", os.devnull]
        done = subprocess.run(command, input=f"#include <{header}>\n", capture_output=True, text=True, check=False)
        if done.returncode != 0:
            sys.stderr.write(done.stderr)
            sys.exit(f"cgxffcv: {shlex.join(compiler)} cannot compile with {header}. Remedy: apt install {package}")


def glob_sources(patterns):
    return {path for pattern in patterns for path in CSRC.glob(pattern)}


def choose_sources(parts):
    chosen = glob_sources(["**/*.c"])
    for part in parts.values():
        chosen -= glob_sources(part.sources) | glob_sources(part.without)
    for part in parts.values():
        chosen |= glob_sources(part.sources if part.found else part.without)
    return sorted(chosen)


@functools.cache
def gpu_architectures():
    """Compute capabilities of this machine's GPUs, 9.0 as 90."""
    present = run("nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader") or ""
    return {major + minor for major, minor in re.findall(r"^(\d+)\.(\d)\s*$", present, re.M)}


def gpu_here():
    return bool(gpu_architectures()) or os.path.exists("/proc/driver/nvidia/version")


def cuda_architectures():
    """CGXFFCV_CUDA_ARCH, or what the GPUs of this machine need, or all common ones."""
    wish = os.environ.get("CGXFFCV_CUDA_ARCH")
    if wish:
        return re.split(r"[;, ]+", wish)
    found = gpu_architectures()
    usable = sorted((a for a in found if int(a) >= 75), key=int)
    return usable or ["75", "80", "90"]


@functools.cache
def nvcc_release(nvcc):
    """(major, minor), or (0, 0) if it does not say."""
    said = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=False).stdout
    found = re.search(r"release (\d+)\.(\d+)", said)
    return (int(found[1]), int(found[2])) if found else (0, 0)


def quick_kernels():
    return os.environ.get("CGXFFCV_CUDA_QUICK") == "1"


def compile_command(source, parts, include_dirs):
    debug, sanitize = os.environ.get("CGXFFCV_DEBUG") == "1", os.environ.get("CGXFFCV_SANITIZE")
    common = [part.macro for part in parts.values()] + [f"-I{CSRC}"]
    if CSRC / "python" in source.parents:  # others need not be compiled again for each Python
        common += [f"-I{directory}" for directory in include_dirs]
    common += [flag for part in parts.values() if part.found for flag in part.cflags]
    optimise = ["-O1", "-g"] if debug else ["-O3", "-g1", "-DNDEBUG"]
    if source.suffix == ".cu":
        architectures = cuda_architectures()
        # instructions that only 9.0 has (wgmma) need code for it alone
        own = [f"{a}a" if a == "90" else a for a in architectures]
        targets = [f"-gencode=arch=compute_{a},code=sm_{a}" for a in own]
        newest = max(architectures, key=lambda a: int(re.sub(r"\D", "", a)))
        targets.append(f"-gencode=arch=compute_{newest},code=compute_{newest}")
        host = "-fPIC,-fvisibility=hidden,-ffp-contract=off"
        common.append(f'-DCGXFFCV_CUDA_ARCHITECTURES="{";".join(architectures)}"')
        warn = ["-Werror=all-warnings"] if os.environ.get("CGXFFCV_WERROR") == "1" else []
        fmad = "false" if source.relative_to(CSRC).parts[0] in UNCONTRACTED else "true"
        optimise = ["--Ofast-compile=max"] if quick_kernels() else ["-O3", *(["-lineinfo"] if debug else [])]
        # A sixth of the size, at the cost of a moment to unpack when kernels are loaded; all CUDA 13 drivers can.
        if len(own) > 1 and nvcc_release(parts["cuda"].why) >= (13, 0):
            optimise.append("--compress-mode=size")
        flags = ["-std=c++17", *optimise, f"--fmad={fmad}", *targets, *warn, f"-Xcompiler={host}"]
        return [parts["cuda"].why, *flags, *(f for f in common if not f.startswith(("-pthread", "-isystem")))]
    flags = C_FLAGS + WARNINGS + optimise
    if os.environ.get("CGXFFCV_WERROR") == "1":
        flags.append("-Werror")
    if sanitize:
        flags += [f"-fsanitize={sanitize}", "-fno-omit-frame-pointer", "-fno-sanitize-recover=undefined", "-g"]
    for suffix, isa in ISA_FLAGS.items():
        if source.stem.endswith(suffix):
            flags += isa
    return [*shlex.split(os.environ.get("CC", "gcc")), *flags, *common]


def object_name(source):
    return source.relative_to(CSRC if CSRC in source.parents else ROOT).as_posix().replace("/", ".")


def up_to_date(target, stamp, command):
    """Whether the object was made by this command from files none of which is newer."""
    depfile = target.with_suffix(".d")
    if not (target.exists() and depfile.exists() and stamp.exists() and stamp.read_text() == command):
        return False
    made = target.stat().st_mtime
    names = depfile.read_text().replace("\\\n", " ").split(":", 1)[-1].split()
    return all(Path(name).exists() and Path(name).stat().st_mtime <= made for name in names)


class BuildExt(build_ext):
    """Incremental parallel compilation with dependency files; setuptools' own recompiles everything."""

    def build_extension(self, extension):
        check_compiler(shlex.split(os.environ.get("CC", "gcc")))
        parts = self.configure()
        sources = self.choose_sources(parts)
        import numpy

        includes = [sysconfig.get_path("include"), numpy.get_include()]
        cache = Path(self.build_temp).resolve()
        objects = [cache / f"{object_name(source)}.o" for source in sources]
        cache.mkdir(parents=True, exist_ok=True)
        with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
            list(pool.map(lambda pair: self.compile_one(*pair, parts, includes), zip(sources, objects, strict=True)))
        self.link(extension, [*objects, *self.missing_parts(objects, cache)], parts)

    # What other builds (tests/cuda/emulator/build.py) do differently.

    def configure(self):
        return configure()

    def choose_sources(self, parts):
        return choose_sources(parts)

    def compile_command(self, source, parts, includes):
        return compile_command(source, parts, includes)

    def missing_parts(self, objects, cache):
        """Further objects, for what these lack."""
        return []

    def compile_one(self, source, target, parts, includes):
        command = self.compile_command(source, parts, includes)
        stamp = target.with_suffix(".cmd")
        text = hashlib.sha256("\0".join(command).encode()).hexdigest()
        if up_to_date(target, stamp, text):
            return
        depfile = target.with_suffix(".d")
        command += ["-MD", "-MF", str(depfile), "-c", str(source), "-o", str(target)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        sys.stderr.write(done.stdout + done.stderr)
        if done.returncode != 0:
            target.unlink(missing_ok=True)
            raise SystemExit(f"cgxffcv: compiling {source.relative_to(ROOT)} failed")
        stamp.write_text(text)

    def link(self, extension, objects, parts):
        output = Path(self.get_ext_fullpath(extension.name))
        output.parent.mkdir(parents=True, exist_ok=True)
        sanitize = os.environ.get("CGXFFCV_SANITIZE")
        flags = ["-shared", "-pthread", "-Wl,--exclude-libs,ALL", "-Wl,-z,relro,-z,now"]
        flags += [f"-fsanitize={sanitize}"] if sanitize else ["-Wl,--no-undefined-version"]
        libs = [flag for part in parts.values() if part.found for flag in part.libs]
        compiler = ["g++"] if parts["cuda"].found else shlex.split(os.environ.get("CC", "gcc"))
        command = [*compiler, *flags, *map(str, objects), "-o", f"{output}.new", *libs, "-lm", "-ldl", "-lrt"]
        subprocess.run(command, check=True)
        os.replace(f"{output}.new", output)
        if output.parent.resolve() != ROOT:  # the stub is next to the module
            shutil.copyfile(ROOT / "_cgxffcv.pyi", output.parent / "_cgxffcv.pyi")


def main(build=BuildExt):
    setup(ext_modules=[Extension("_cgxffcv", sources=[])], cmdclass={"build_ext": build})


if __name__ == "__main__":
    main()
