#!/usr/bin/env python3
"""Makes a built wheel portable: auditwheel adds libraries, this adds their licences and a list of the contents.

usage: tools/repair_wheel.py WHEEL FOLDER [auditwheel's options...]

auditwheel copies libjpeg-turbo into the wheel, strips debug information, and names the oldest Linux that the wheel runs
on. oneDNN stays a separate package (onednn-cpu-gomp, larger than all of this); cuBLASLt, cuDNN, NCCL and MPI are opened
at run time. For each copied library, the licence from its system package goes into .dist-info/licenses and is named in
METADATA (PEP 639), and .dist-info/sboms/cgxffcv.cdx.json (PEP 770, CycloneDX 1.6) describes it, as it does CUDA's
runtime, which is linked into a module with kernels. GCC's OpenMP runtime, which oneDNN needs, is added under its own
name, for systems that lack it (cgxffcv/bundled.py). Needs auditwheel and patchelf. SYSROOT=FOLDER: the root of the
system that the module was linked for, if not this one (tools/old_glibc.sh).
"""

import base64
import csv
import hashlib
import io
import json
import os
import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterable
from pathlib import Path

EXCLUDED = ("libdnnl.so.3",)
SYSTEM = os.environ.get("SYSROOT", "")
# library: name, licence (SPDX), where Debian and Red Hat install its text
KNOWN = {
    "libjpeg": (
        "libjpeg-turbo",
        "IJG AND BSD-3-Clause AND Zlib",
        ("/usr/share/doc/libjpeg62-turbo/copyright", "/usr/share/licenses/libjpeg-turbo/LICENSE.md"),
    ),
    "libgomp": (
        "libgomp",
        "GPL-3.0-or-later WITH GCC-exception-3.1",
        (
            "/usr/share/doc/libgomp1/copyright",
            "/usr/share/licenses/libgomp/COPYING.RUNTIME",
            "/usr/share/licenses/libgcc/COPYING.RUNTIME",
        ),
    ),
}
OPENMP = "libgomp.so.1"
OPENMP_PLACES = (f"/usr/lib/x86_64-linux-gnu/{OPENMP}", f"/usr/lib64/{OPENMP}")
# in a module with kernels: the section in which nvcc stores them, and the library that is linked with them
KERNELS = b".nv_fatbin"
RUNTIME = {
    "type": "library",
    "name": "libcudart_static",
    "description": "NVIDIA's CUDA runtime, linked into the module along with its kernels",
    "licenses": [{"license": {"name": "NVIDIA CUDA Toolkit EULA", "url": "https://docs.nvidia.com/cuda/eula/"}}],
}


def known(library: str) -> tuple[str, str, tuple[str, ...]]:
    """The entry of KNOWN for a copied library, by its file name: libjpeg-0b4c0f9c.so.62.3.0."""
    stem = re.match(r"lib[a-z]+", library)
    if stem is None or stem[0] not in KNOWN:
        sys.exit(
            f"repair_wheel: {library} was copied into the wheel, but its licence is not known here: add it to KNOWN"
        )
    return KNOWN[stem[0]]


def licence(library: str) -> bytes:
    places = [Path(SYSTEM + place) for place in known(library)[2]]
    found = next((place for place in places if place.is_file()), None)
    if found is None:
        sys.exit(f"repair_wheel: the licence of {library} is at none of {', '.join(map(str, places))}")
    return found.read_bytes()


def described(text: bytes, libraries: Iterable[str]) -> bytes:
    """METADATA with the licences of the copied libraries."""
    found = {known(library)[0]: known(library)[1] for library in libraries}
    head, gap, readme = text.decode().partition("\n\n")
    head = re.sub(r"^License-Expression: .*", lambda match: " AND ".join([match[0], *found.values()]), head, flags=re.M)
    files = "".join(f"\nLicense-File: {name}.txt" for name in found)
    return f"{head}{files}{gap}{readme}".encode()


def bill(name: str, version: str, libraries: dict[str, bytes], kernels: bool) -> bytes:
    """The software bill of materials."""
    components = [
        {
            "type": "library",
            "name": known(library)[0],
            "version": (re.search(r"\.so\.([\d.]+)$", library) or ["", "unknown"])[1],
            "description": f"copied into the wheel as {library}; the version is that of its ABI",
            "licenses": [{"expression": known(library)[1]}],
            "hashes": [{"alg": "SHA-256", "content": hashlib.sha256(content).hexdigest()}],
        }
        for library, content in sorted(libraries.items())
    ]
    if kernels:
        components.append(RUNTIME)
    own = {"type": "library", "name": name, "version": version, "purl": f"pkg:pypi/{name}@{version}"}
    document = {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {"component": {**own, "licenses": [{"expression": "Apache-2.0"}]}},
        "components": components,
    }
    return (json.dumps(document, indent=2) + "\n").encode()


def complete(files: dict[str, bytes]) -> dict[str, bytes]:
    """The files of a repaired wheel with licences, the bill and a new RECORD."""
    info = next(name.split("/")[0] for name in files if name.endswith(".dist-info/WHEEL"))
    name, version = info.removesuffix(".dist-info").split("-")
    libraries = {n.rpartition("/")[2]: content for n, content in files.items() if n.startswith(f"{name}.libs/")}
    for library in libraries:
        files[f"{info}/licenses/{known(library)[0]}.txt"] = licence(library)
    kernels = any(re.match(r"_cgxffcv.*\.so$", path) and KERNELS in content for path, content in files.items())
    files[f"{info}/sboms/{name}.cdx.json"] = bill(name, version, libraries, kernels)
    files[f"{info}/METADATA"] = described(files[f"{info}/METADATA"], libraries)
    rows = io.StringIO()
    writer = csv.writer(rows, lineterminator="\n")
    record = f"{info}/RECORD"
    for path, content in files.items():
        if path != record:
            digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
            writer.writerow([path, f"sha256={digest}", len(content)])
    writer.writerow([record, "", ""])
    return {**{path: content for path, content in files.items() if path != record}, record: rows.getvalue().encode()}


def reach_onednn(module: bytes) -> bytes:
    """The module with the path to oneDNN's package, which auditwheel removes: PREFIX/lib, above
    PREFIX/lib/pythonX.Y/site-packages."""
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "module.so"
        path.write_bytes(module)
        subprocess.run(["patchelf", "--add-rpath", "$ORIGIN/../..", str(path)], check=True)
        return path.read_bytes()


def openmp(wheel: str) -> bytes:
    """This machine's GCC OpenMP runtime, which must run wherever the wheel's name claims that the wheel does."""
    found = next((place for place in (Path(SYSTEM + name) for name in OPENMP_PLACES) if place.is_file()), None)
    if found is None:
        sys.exit(f"repair_wheel: {OPENMP} is at none of {', '.join(OPENMP_PLACES)}")
    content = found.read_bytes()
    oldest = int(re.search(r"manylinux_2_(\d+)", wheel)[1])
    needed = max(int(version) for version in re.findall(rb"\0GLIBC_2\.(\d+)(?=[.\0])", content))
    if needed > oldest:
        sys.exit(f"repair_wheel: {found} needs glibc 2.{needed}, and {wheel} is to run with 2.{oldest}")
    return content


def rewrite(wheel: Path, target: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        modes = {item.filename: item.external_attr for item in archive.infolist()}
        files = {item.filename: archive.read(item) for item in archive.infolist() if not item.is_dir()}
    files |= {name: reach_onednn(content) for name, content in files.items() if re.match(r"_cgxffcv.*\.so$", name)}
    files[f"cgxffcv.libs/{OPENMP}"] = openmp(target.name)
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for path, content in complete(files).items():
            item = zipfile.ZipInfo(path, (2020, 1, 1, 0, 0, 0))
            item.external_attr = modes.get(path, 0o644 << 16)
            item.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(item, content)


def main(wheel: str, folder: str, *options: str) -> None:
    excluded = [word for name in EXCLUDED for word in ("--exclude", name)]
    Path(folder).mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        command = [sys.executable, "-m", "auditwheel", "repair", "--strip", *excluded, *options, "-w", scratch, wheel]
        subprocess.run(command, check=True)
        for repaired in Path(scratch).glob("*.whl"):
            rewrite(repaired, Path(folder) / repaired.name)
            print(f"repair_wheel: {repaired.name}, {(Path(folder) / repaired.name).stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    main(*sys.argv[1:])
