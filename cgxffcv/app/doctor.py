"""cgxffcv doctor: what this machine and this build have, what is missing, and the one command that fixes it."""

from __future__ import annotations

import ctypes
import ctypes.util
import importlib.metadata
import json
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import urllib.parse
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cgxffcv import __version__, files

TIMEOUT = 10.0
APT = {
    "compiler": ["gcc", "python3-dev", "python3-venv"],
    "jpeg": ["libjpeg-dev"],
}
USE = {
    "onednn": "training on the CPU",
    "mpi": "several ranks under mpirun",
    "jpeg": "JPEG images in .beton files",
    "cuda": "GPUs",
    "nccl": "uncompressed sums between GPUs through NCCL",
}
# packages that bring back a library that the extension module is linked with
LIBRARIES = {
    "jpeg": ["libjpeg-dev"],
    "gomp": ["libgomp1"],
    "stdc++": ["libstdc++6"],
}
CUDA_PACKAGES = ["cuda-toolkit-13-0", "libcudnn9-dev-cuda-13", "libnccl-dev"]
FRAMEWORKS = ("torch", "jax", "cupy", "Pillow", "matplotlib")


def output(*command: str) -> str | None:
    """What a command prints; None if it does not exist, fails or hangs."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT, check=False, errors="replace")
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None


def version_of(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def first_match(pattern: str, text: str | None) -> str | None:
    match = re.search(pattern, text or "", re.M)
    return match[1].strip() if match else None


def read(path: str) -> str:
    try:
        return Path(path).read_text(errors="replace")
    except OSError:
        return ""


def core() -> dict[str, Any]:
    """The extension module: its build_info(), or why it cannot be loaded."""
    try:
        import _cgxffcv
    except ImportError as error:
        return {"loaded": False, "error": str(error)}
    return {"loaded": True, "path": _cgxffcv.__file__, "info": _cgxffcv.build_info()}


def system() -> dict[str, Any]:
    shm = os.statvfs("/dev/shm") if os.path.isdir("/dev/shm") else None
    memory = read("/proc/meminfo")
    return {
        "os": (first_match(r'^PRETTY_NAME="?([^"\n]+)', read("/etc/os-release")) or platform.system()),
        "kernel": platform.release(),
        "machine": platform.machine(),
        "processor": first_match(r"^model name\s*:\s*(.+)$", read("/proc/cpuinfo")) or platform.machine(),
        "cores": os.cpu_count(),
        "usable_cores": len(os.sched_getaffinity(0)),
        "memory_bytes": int(first_match(r"^MemTotal:\s+(\d+)", memory) or 0) * 1024,
        "memory_available_bytes": int(first_match(r"^MemAvailable:\s+(\d+)", memory) or 0) * 1024,
        "shm_free_bytes": shm.f_bavail * shm.f_frsize if shm else 0,
    }


def gpus() -> dict[str, Any]:
    """The NVIDIA driver and its GPUs, according to nvidia-smi, or else to the kernel's files."""
    query = "name,memory.total,compute_cap,driver_version"
    listed = output("nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader")
    if listed is not None:
        rows = [[part.strip() for part in line.split(",")] for line in listed.splitlines() if line.count(",") == 3]
        return {
            "driver": rows[0][3] if rows else None,
            "devices": [{"name": r[0], "memory": r[1], "compute_capability": r[2]} for r in rows],
        }
    driver = first_match(r"Kernel Module\s+([\d.]+)", read("/proc/driver/nvidia/version"))
    names = [
        first_match(r"^Model:\s*(.+)$", read(str(path))) or path.parent.name
        for path in sorted(Path("/proc/driver/nvidia/gpus").glob("*/information"))
    ]
    return {"driver": driver, "devices": [{"name": name} for name in names]}


def plan_cache() -> dict[str, Any]:
    """Where the fastest convolutions are cached (csrc/nn/cuda/conv/plans.h), and whether that folder is writable."""
    folder = files.cache_folder()
    nearest = folder
    while not nearest.exists() and nearest != nearest.parent:
        nearest = nearest.parent
    return {"folder": str(folder), "writable": nearest.is_dir() and os.access(nearest, os.W_OK | os.X_OK)}


def _no_code(architectures: str, capability: tuple[int, int]) -> str | None:
    """What is wrong if a build for these architectures ("75;80;90") has no code for a GPU; None if it does."""
    codes = sorted((int(a) // 10, int(a) % 10) for a in re.findall(r"\d+", architectures))
    same = any(major == capability[0] and minor <= capability[1] for major, minor in codes)
    if not codes or same or capability >= codes[-1]:  # the newest one's code also runs on newer GPUs
        return None
    number = "".join(map(str, capability))
    return f"this build's code (for {architectures}) does not run on it: rebuild with CGXFFCV_CUDA_ARCH={number}"


def cuda() -> dict[str, Any]:
    """What a build with CUDA sees of this machine's GPUs; {} for a build without."""
    try:
        import _cgxffcv
    except ImportError:
        return {}
    info = _cgxffcv.build_info()
    if not info["cuda"]:
        return {}
    devices = [
        {**device, "free_bytes": None, "problem": _no_code(info["cuda_architectures"], device["compute_capability"])}
        for device in _cgxffcv.devices()
    ]
    if devices:  # only the first is tried: setting up the others would take time and memory on each
        try:
            _cgxffcv.select_device(0)
            devices[0] |= {"free_bytes": _cgxffcv.device_free_memory(), "problem": None}
        except (ValueError, _cgxffcv.CudaError) as error:
            devices[0]["problem"] = str(error)
    nccl, cudnn = _cgxffcv.nccl_version(), _cgxffcv.cudnn_version()
    return {
        "architectures": info["cuda_architectures"],
        "why_no_device": _cgxffcv.why_no_device(),
        "devices": devices,
        "cudnn": f"{cudnn // 10000}.{cudnn // 100 % 100}.{cudnn % 100}" if cudnn else None,
        "nccl": f"{nccl // 10000}.{nccl // 100 % 100}.{nccl % 100}" if nccl else None,
        "plan_cache": plan_cache(),
    }


def _mpi_library() -> tuple[dict[str, str] | None, str | None]:
    """The MPI library that ranks started from here would use, or why there is none."""
    try:
        import _cgxffcv

        return _cgxffcv.mpi_library(open=True), None
    except (ImportError, RuntimeError) as error:  # NotBuiltError and CommError among them
        return None, str(error)


def mpi() -> dict[str, Any]:
    library, why = _mpi_library()
    version = first_match(r"\(Open MPI\)\s+(\S+)", output("mpirun", "--version"))
    details = output("ompi_info", "--parsable", "--all") if version else None
    cuda = first_match(r"mpi_built_with_cuda_support:value:(\w+)", details)
    return {
        "mpirun": shutil.which("mpirun"),
        "open_mpi": version,
        "library": library,
        "why_no_library": why,
        "cuda_aware": None if cuda is None else cuda == "true",
    }


def in_wheel(module: str | None, name: str) -> str | None:
    """The library of that name which a wheel has brought along with the extension module."""
    libraries = Path(module or "").parent.glob(f"cgxffcv.libs/{name}-*") if module else ()
    return next((f"{library.name}, from the wheel" for library in libraries), None)


def found() -> dict[str, str | None]:
    """For each part of the build, what of it is on this machine; None if nothing."""
    nvcc = shutil.which("nvcc") or shutil.which("/usr/local/cuda/bin/nvcc")
    m = mpi()
    jpeg = in_wheel(core().get("path"), "libjpeg") or ctypes.util.find_library("jpeg")
    nccl = ctypes.util.find_library("nccl")
    runtime, headers = version_of("onednn-cpu-gomp"), version_of("onednn-devel-cpu-gomp")
    onednn = f"onednn-cpu-gomp {runtime}" if runtime else ctypes.util.find_library("dnnl")
    cuda = first_match(r"release ([\d.]+)", output(nvcc, "--version")) if nvcc else None
    awareness = {True: ", CUDA-aware", False: ", not CUDA-aware", None: ""}[m["cuda_aware"]]
    return {
        "onednn": f"{onednn}{' with headers' if headers else ''}" if onednn else None,
        "mpi": f"{m['library']['version']} ({m['library']['path']}){awareness}" if m["library"] else None,
        "jpeg": jpeg,
        "cuda": f"CUDA toolkit {cuda}" if cuda else None,
        "nccl": nccl,
    }


def gather() -> dict[str, Any]:
    """Everything that doctor reports, as plain values."""
    report: dict[str, Any] = {
        "cgxffcv": __version__,
        "python": platform.python_version(),
        "executable": sys.executable,
        "numpy": version_of("numpy"),
        "core": core(),
        "system": system(),
        "gpu": gpus(),
        "cuda": cuda(),
        "mpi": mpi(),
        "found": found(),
        "gcc": first_match(r"(\d+\.\d+\.\d+)", output("gcc", "-dumpfullversion", "-dumpversion")),
        "frameworks": {name: version_of(name) for name in FRAMEWORKS if version_of(name)},
    }
    report["missing"], report["remedy"] = diagnose(report)
    return report


@dataclass
class Repair:
    """What the one command has to do."""

    packages: list[str] = field(default_factory=list)  # for Debian and Ubuntu
    toolkit: list[str] = field(default_factory=list)  # from NVIDIA's repository
    python: list[str] = field(default_factory=list)  # for pip
    build: bool = False  # cgxffcv itself again
    variables: str = ""  # set before the build


def diagnose(report: dict[str, Any]) -> tuple[list[str], str | None]:
    """What is missing, in words, and the one command that fixes it; None if nothing is missing."""
    missing: list[str] = []
    repair = Repair()
    info = report["core"].get("info", {})
    if not report["core"]["loaded"]:
        missing.append(f"the extension module _cgxffcv cannot be loaded: {report['core']['error']}")
        _repair_loading(report["core"]["error"], repair)
    for part in ("onednn", "mpi", "jpeg"):
        if not info or info.get(part):
            continue
        here = report["found"][part]
        reason = f"{here} is installed, but this build was made without it" if here else "not installed"
        missing.append(f"{part} ({USE[part]}): {'this build was made without it' if part == 'mpi' else reason}")
        repair.build = True
        if here is None:
            repair.packages += APT.get(part, [])
    if info.get("mpi") and report["mpi"]["library"] is None:
        missing.append(f"the MPI library ({USE['mpi']}): {report['mpi']['why_no_library']}")
        repair.packages.append("openmpi-bin")
    elif info.get("mpi") and report["mpi"]["mpirun"] is None:
        missing.append("mpirun, which starts several ranks: not installed")
        repair.packages.append("openmpi-bin")
    if info and not info.get("cuda") and report["gpu"]["devices"]:
        here = report["found"]["cuda"]
        reason = f"{here} is installed, but this build was made without it"
        if not here:
            reason = "the CUDA toolkit is not installed (its packages come from NVIDIA's repository, "
            reason += "developer.nvidia.com/cuda-downloads)"
        missing.append(f"cuda ({USE['cuda']}): there is a GPU; {reason}")
        repair.build, repair.toolkit = True, [] if here else CUDA_PACKAGES
    if info.get("cuda"):
        missing += _diagnose_gpus(report, repair)
    if repair.build and report["gcc"] is None:
        repair.packages += APT["compiler"]
    return missing, remedy(repair)


def _repair_loading(error: str, repair: Repair) -> None:
    """Installs a missing library again; anything else that keeps the module from loading is fixed by a build."""
    library = first_match(r"\blib([\w+-]+)\.so", error)
    if library in LIBRARIES:
        repair.packages += LIBRARIES[library]
    elif library == "dnnl":
        repair.python.append("onednn-cpu-gomp")
    elif "No module named 'numpy'" in error:
        repair.python.append("numpy")
    else:
        repair.build = True


def _diagnose_gpus(report: dict[str, Any], repair: Repair) -> list[str]:
    """What is wrong with the GPUs that a build with CUDA finds, in words."""
    cuda = report["cuda"]
    wrong, lacking = [], []
    if not cuda["devices"] and report["gpu"]["driver"]:
        wrong.append(f"GPUs cannot be used: {cuda['why_no_device']}")
    for index, device in enumerate(cuda["devices"]):
        if device["problem"]:
            wrong.append(f"GPU {index} ({device['name']}) cannot be used: {device['problem']}")
            lacking += ["".join(map(str, device["compute_capability"]))] if "rebuild" in device["problem"] else []
    if cuda["devices"] and cuda["cudnn"] is None:
        wrong.append("cuDNN 9 for CUDA 13, which training on GPUs needs, is not installed")
        repair.python.append("nvidia-cudnn-cu13 nvidia-cublas")
    if cuda["devices"] and not cuda["plan_cache"]["writable"]:
        wrong.append(
            f"{cuda['plan_cache']['folder']} is not writable: each process looks for the fastest convolutions again; "
            "set CGXFFCV_CACHE to a folder that you can write to"
        )
    if len(cuda["devices"]) > 1 and cuda["nccl"] is None:
        built = report["core"]["info"].get("nccl")
        wrong.append("NCCL is not installed: uncompressed gradients are sent between the GPUs by our own kernels only")
        repair.toolkit += ["libnccl2"] if built else ["libnccl2", "libnccl-dev"]
        repair.build |= not built
    if lacking:
        architectures = ";".join(dict.fromkeys([*cuda["architectures"].split(";"), *lacking]))
        repair.build, repair.variables = True, f"CGXFFCV_CUDA_ARCH='{architectures}' "
    return wrong


def _is_source(folder: Path) -> bool:
    return "cgxffcv" in read(str(folder / "Makefile"))


def _origin() -> dict[str, Any]:
    """What pip has recorded about where this package came from (PEP 610); {} for a package index, or if unknown."""
    try:
        return json.loads(importlib.metadata.distribution("cgxffcv").read_text("direct_url.json") or "{}")
    except (importlib.metadata.PackageNotFoundError, ValueError):
        return {}


def _installed_from() -> Path | None:
    """The folder or file that pip installed from, if it is still there."""
    address = urllib.parse.urlsplit(str(_origin().get("url", "")))
    path = Path(urllib.parse.unquote(address.path))
    return path if address.scheme == "file" and path.exists() else None


def checkout() -> Path | None:
    """The source tree: the working directory, where this package is, or where it was installed from."""
    folders = (Path.cwd(), Path(__file__).resolve().parents[2], _installed_from())
    return next((folder for folder in folders if folder and _is_source(folder)), None)


def _made_here(folder: Path) -> bool:
    """True if `make` in a source tree builds what this Python runs."""
    return folder / ".venv" == Path(sys.prefix) or folder == Path(__file__).resolve().parents[2]


def _source() -> str:
    """What pip builds from, quoted for a shell. A wheel does not count: what it was built without, it always lacks."""
    folder, installed, origin = checkout(), _installed_from(), _origin()
    if folder is not None:
        return shlex.quote(str(folder))
    if installed is not None and installed.suffix != ".whl":
        return shlex.quote(str(installed))
    if origin.get("vcs_info", {}).get("vcs") == "git":
        return shlex.quote(f"git+{origin['url']}")
    return "SOURCE"


def remedy(repair: Repair) -> str | None:
    """One shell command line; None if there is nothing to do."""
    folder = checkout()
    make = repair.build and folder is not None and _made_here(folder)
    # make also installs the packages, but not NVIDIA's
    wanted = list(dict.fromkeys(([] if make else repair.packages) + repair.toolkit))
    steps = []
    if wanted:
        steps.append(f"{'' if os.geteuid() == 0 else 'sudo '}apt-get install -y {' '.join(wanted)}")
    pip = f"{shlex.quote(sys.executable)} -m pip install"
    if repair.python:
        steps.append(f"{pip} --force-reinstall {' '.join(repair.python)}")
    if make:  # clean: so that it builds even if nothing in the tree has changed
        where = "" if folder == Path.cwd() else f" -C {shlex.quote(str(folder))}"
        steps.append(f"{repair.variables}make{where} clean build")
    elif repair.build:
        steps.append(f"{repair.variables}{pip} --force-reinstall --no-deps --no-cache-dir {_source()}")
    return " && ".join(steps) or None


def yes(value: Any) -> str:
    return "yes" if value else "no"


def text(report: dict[str, Any]) -> str:
    """The report for people."""
    s, loaded = report["system"], report["core"]["loaded"]
    info = report["core"].get("info", {})
    cpu = info.get("cpu", {})
    gigabytes = {key: f"{s[key] / 1e9:.1f} GB" for key in s if key.endswith("_bytes")}
    devices = report["gpu"]["devices"]
    core = f"{report['core']['path']}, compiled by gcc {info['compiler']}" if loaded else "NOT LOADED"
    lines = [
        f"cgxffcv    {report['cgxffcv']}, Python {report['python']} ({report['executable']}), NumPy {report['numpy']}",
        f"core       {core}",
        f"system     {s['os']}, Linux {s['kernel']}, {s['machine']}; gcc {report['gcc'] or 'not installed'}",
        f"processor  {s['processor']}, {s['usable_cores']} of {s['cores']} cores usable",
    ]
    if cpu:
        lines.append("           " + ", ".join(f"{name} {yes(has)}" for name, has in cpu.items()))
    lines.append(
        f"memory     {gigabytes['memory_bytes']}, {gigabytes['memory_available_bytes']} available; "
        f"/dev/shm {gigabytes['shm_free_bytes']} free"
    )
    driver = report["gpu"]["driver"]
    lines.append(f"GPU        {f'driver {driver}' if driver else 'no NVIDIA driver'}" + ("" if devices else ", no GPU"))
    lines += [f"           {i}: {', '.join(device.values())}" for i, device in enumerate(devices)]
    lines += _cuda_lines(report.get("cuda") or {})
    lines += ["", "part      built in  on this machine"]
    for part, use in USE.items():
        built = yes(info.get(part)) if loaded else "-"
        lines.append(f"{part:<9} {built:<9} {report['found'][part] or 'not found'} ({use})")
    if report["frameworks"]:
        lines += ["", "also installed: " + ", ".join(f"{name} {v}" for name, v in report["frameworks"].items())]
    lines.append("")
    if report["missing"]:
        lines += ["Missing:"] + [f"  {item}" for item in report["missing"]]
        lines += ["This fixes it:", f"  {report['remedy']}"] if report["remedy"] else []
        if (report["remedy"] or "").endswith(" SOURCE"):
            lines.append(
                "  (SOURCE: a folder with cgxffcv's source, or its .tar.gz; a wheel has only what it was built with)"
            )
        if "apt-get" in (report["remedy"] or "") and shutil.which("apt-get") is None:
            lines.append("  (these are the package names of Debian and Ubuntu; this system has others)")
    else:
        without = "" if info.get("cuda") else " (there is no GPU, so no CUDA is needed)"
        lines.append(f"Nothing is missing{without}.")
    return "\n".join(lines)


def _version(number: int) -> str:
    return f"{number // 1000}.{number % 1000 // 10}"


def _memory(free: int | None, total: int) -> str:
    return f"{total / 1e9:.1f} GB" if free is None else f"{free / 1e9:.1f} of {total / 1e9:.1f} GB free"


def _cuda_lines(cuda: dict[str, Any]) -> list[str]:
    """What the build sees of the GPUs."""
    if not cuda:
        return []
    cache = cuda["plan_cache"]
    lines = [f"CUDA       code for compute capabilities {cuda['architectures'].replace(';', ', ')}"]
    if cuda["devices"]:
        d = cuda["devices"][0]
        lines[0] += f"; runtime {_version(d['runtime_version'])}, the driver supports {_version(d['driver_version'])}"
    lines[0] += f"; cuDNN {cuda['cudnn'] or 'not found'}, NCCL {cuda['nccl'] or 'not found'}"
    for i, d in enumerate(cuda["devices"]):
        capability = ".".join(map(str, d["compute_capability"]))
        lines.append(
            f"           {i}: {d['name']}, compute capability {capability}, {d['multiprocessors']} multiprocessors, "
            f"{_memory(d['free_bytes'], d['memory_bytes'])}, "
            f"{'CANNOT BE USED' if d['problem'] else 'usable'}"
        )
    if not cuda["devices"]:
        lines.append(f"           no device: {cuda['why_no_device']}")
    lines.append(f"           plans in {cache['folder']} ({'writable' if cache['writable'] else 'NOT writable'})")
    return lines


def main(json: bool = False) -> int:
    """Prints the report; 1 if the extension module cannot be loaded, else 0."""
    report = gather()
    print(_json(report) if json else text(report))
    return 0 if report["core"]["loaded"] else 1


def _json(report: dict[str, Any]) -> str:
    return json.dumps(report, indent=2)
