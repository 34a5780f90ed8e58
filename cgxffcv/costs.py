"""What allreduces cost between these ranks, for the choice of their algorithm: a line for each algorithm.

A line is (latency, seconds per element, seconds per byte of one copy on the wire). `cgxffcv calibrate` measures lines
and saves them in a file, for ranks in this order on the same processors or GPUs, with the same libraries and links.
`of` takes them from there; on CPUs, if none are saved, it measures briefly. All ranks use those of rank 0.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
import warnings
import weakref
from pathlib import Path
from typing import Any

import _cgxffcv

from cgxffcv import __version__, files
from cgxffcv.errors import UserError

__all__ = ["Lines", "calibrate", "kept", "of", "predicted"]

#: By algorithm: latency, seconds per element, seconds per byte of one copy on the wire.
Lines = dict[str, tuple[float, float, float]]

FORMAT = 2  # 1 was measured with another path between nodes
SITES = {"host": (1 << 10, 1 << 15, 1 << 18, 1 << 21), "device": (1 << 14, 1 << 18, 1 << 21, 1 << 24)}  # elements
LONGEST = 1e9  # seconds that anything may take in a file's lines
QUICK, THOROUGH = 4, 20  # repeats of each measurement, of which the best counts
BUCKET = 1024  # elements that share 8 bytes on the wire
SPREAD = 2.0  # between two measurements of the same; "auto" decides between times that are closer than that
TRIES = 3  # measurements after the first one, until two in succession agree
LINKS = (
    "CGXFFCV_P2P",
    "CGXFFCV_COMM_NCCL",
    "CGXFFCV_COMM_KERNELS",
    "CGXFFCV_COMM_EXACT_KIB",
    "NCCL_P2P_DISABLE",
    "NCCL_SHM_DISABLE",
    "NCCL_SOCKET_NTHREADS",
    "NCCL_NSOCKS_PERTHREAD",
    "OMPI_MCA_btl",
    "OMPI_MCA_pml",
)
_remembered: weakref.WeakKeyDictionary[_cgxffcv.Comm, dict[str, Lines | None]] = weakref.WeakKeyDictionary()


def predicted(lines: Lines, bits: int, elems: int) -> dict[str, float]:
    """Seconds of a call over float32, by algorithm."""
    times = {}
    for name, (latency, element, byte) in lines.items():
        bytes_each = 4.0 if name == "exact" else bits / 8 + 8 / BUCKET
        times[name] = latency + elems * (element + bytes_each * byte)
    return times


def _site(device: int | None) -> str:
    return "host" if device is None else "device"


def _processor() -> str:
    found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(errors="replace"), re.M)
    return f"{found[1] if found else 'a processor'}, {os.cpu_count()} cores"


def _driver() -> str:
    try:
        return Path("/proc/driver/nvidia/version").read_text(errors="replace").splitlines()[0].strip()
    except (OSError, IndexError):
        return ""


def _here(comm: _cgxffcv.Comm, device: int | None) -> dict[str, Any]:
    """What a rank's costs depend on."""
    about: dict[str, Any] = {"node": comm.node, "processor": _processor()}
    if device is not None:
        gpu = _cgxffcv.devices()[device]
        about |= {"gpu": gpu["name"], "bus": gpu["bus"], "driver": _driver(), "runtime": gpu["runtime_version"]}
        about["nccl"] = _cgxffcv.nccl_version()
    return about | {"links": {name: os.environ[name] for name in LINKS if name in os.environ}}


def identity(comm: _cgxffcv.Comm, device: int | None) -> dict[str, Any]:
    """What saved lines apply to: the same on all ranks, which it lists in order. Collective."""
    ranks = [json.loads(text) for text in comm.allgather(json.dumps(_here(comm, device)).encode())]
    return {"cgxffcv": __version__, "site": _site(device), "ranks": ranks}


def path_of(about: dict[str, Any]) -> Path:
    """The file of that identity."""
    name = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:16]
    return files.cache_folder() / f"costs-{name}.json"


def _checked(text: str, about: dict[str, Any]) -> Lines:
    """The lines in a file's text. ValueError, which says what is wrong, unless it was written for `about`."""
    held = json.loads(text)
    if not isinstance(held, dict) or held.get("format") != FORMAT:
        raise ValueError("it has another format")
    if held.get("about") != about:
        raise ValueError("it was measured elsewhere")
    lines = held.get("lines")
    if not isinstance(lines, dict) or not lines or not lines.keys() <= set(_cgxffcv.ALLREDUCE_ALGORITHMS):
        raise ValueError("its lines are not those of algorithms")
    for name, line in lines.items():
        numbers = isinstance(line, list) and len(line) == 3 and all(type(x) in (int, float) for x in line)
        if not numbers or not all(0 <= x <= LONGEST for x in line):
            raise ValueError(f"its line of {name} is {line!r}")
    return {name: tuple(map(float, line)) for name, line in lines.items()}


def _read(about: dict[str, Any]) -> Lines | None:
    """The lines in the file, if it exists and is valid; warns about one that is not."""
    path = path_of(about)
    try:
        return _checked(path.read_text(), about)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        message = f"{path}: not used: {why}; `cgxffcv calibrate` under mpirun writes a new one"
        warnings.warn(message, RuntimeWarning, stacklevel=2)
        return None


def kept(comm: _cgxffcv.Comm, device: int | None = None) -> Lines | None:
    """The lines that rank 0 has saved; None if there are none. Collective."""
    about = identity(comm, device)
    mine = json.dumps(_read(about)).encode() if comm.rank == 0 else None
    lines = json.loads(comm.broadcast(mine))
    return lines and {name: tuple(line) for name, line in lines.items()}


def of(comm: _cgxffcv.Comm, device: int | None = None) -> Lines | None:
    """The lines between these ranks, of buffers in host memory or on the selected GPU; None if they have to be chosen
    by a rule. Collective at the first call, then cached."""
    remembered = _remembered.setdefault(comm, {})
    site = _site(device)
    if site not in remembered:
        lines = kept(comm, device)
        if lines is None and site == "host":
            lines = _cgxffcv.allreduce_measure(comm, site, SITES[site], QUICK)
        remembered[site] = lines
    return remembered[site]


def _farthest(first: Lines, second: Lines, sizes: tuple[int, ...]) -> tuple[float, str, int]:
    """By what factor two measurements differ at most, of which algorithm and with how many elements."""
    factors = []
    for elems in sizes:
        before, after = predicted(first, 4, elems), predicted(second, 4, elems)
        for name, seconds in before.items():
            low, high = sorted((seconds, after[name]))
            factors.append((high / max(low, 1e-9), name, elems))
    return max(factors)


def _measured(comm: _cgxffcv.Comm, site: str, sizes: tuple[int, ...], repeats: int, spread: float) -> Lines:
    """Lines that a second measurement has confirmed. All ranks have the same, so all decide the same."""
    lines = _cgxffcv.allreduce_measure(comm, site, sizes, repeats)
    for _ in range(TRIES):
        before, lines = lines, _cgxffcv.allreduce_measure(comm, site, sizes, repeats)
        factor, name, elems = _farthest(before, lines, sizes)
        if factor <= spread:
            return lines
    raise UserError(
        f"nothing was saved: two measurements of {name} with {elems:,} elements still differ by a factor of "
        f"{factor:.1f}, not of {spread:g} at most: something else is running here; try again while it is not"
    )


def calibrate(
    comm: _cgxffcv.Comm,
    device: int | None = None,
    sizes: tuple[int, ...] = (),
    repeats: int = THOROUGH,
    spread: float = SPREAD,
) -> tuple[Lines, Path]:
    """Measures lines with these numbers of elements and saves them: (lines, the file). Collective; OSError on rank 0 if
    it cannot be written; UserError on all if repeated measurements differ by more than the factor `spread`."""
    site = _site(device)
    about = identity(comm, device)
    lines = _measured(comm, site, sizes or SITES[site], repeats, spread)
    path = path_of(about)
    if comm.rank == 0:
        path.parent.mkdir(parents=True, exist_ok=True)
        held = {"format": FORMAT, "about": about, "lines": lines, "day": time.strftime("%Y-%m-%d")}
        files.write(path, json.dumps(held, indent=1) + "\n")
    _remembered.setdefault(comm, {})[site] = lines
    return lines, path
