"""The build says at once what it lacks, and builds for CUDA only where that is useful."""

import os
import sys
from pathlib import Path

import pytest
from checkout import run_python

ROOT = Path(__file__).resolve().parents[2]


def build(tmp_path, **environ):
    """A build that finds no working compiler: it ends before it compiles."""
    switches = {key: value for key, value in os.environ.items() if not key.startswith("CGXFFCV_") and key != "CC"}
    command = ["setup.py", "-q", "build_ext", "--build-temp", tmp_path, "--build-lib", tmp_path]
    return run_python(*command, status=None, cwd=ROOT, env={**switches, **environ})


def compiler(tmp_path, lacks):
    """A compiler that preprocesses everything but one header, and compiles nothing."""
    script = tmp_path / "compiler"
    script.write_text(f"#!/bin/sh\nif grep -q {lacks}; then echo '{lacks}: No such file' >&2; exit 1; fi\nexit 0\n")
    script.chmod(0o755)
    return script


def test_no_compiler(tmp_path):
    done = build(tmp_path, CC="ccache-that-is-nowhere gcc")
    assert (
        done.returncode != 0 and "no C compiler 'ccache-that-is-nowhere' here. Remedy: apt install gcc" in done.stderr
    )


@pytest.mark.parametrize(
    "header, package", [("stdio.h", "gcc libc6-dev"), ("Python.h", f"python3.{sys.version_info.minor}-dev")]
)
def test_no_headers(tmp_path, header, package):
    done = build(tmp_path, CC=f"{compiler(tmp_path, header)} -m64")
    assert done.returncode != 0 and f"-m64 cannot compile with {header}. Remedy: apt install {package}" in done.stderr
    assert f"{header}: No such file" in done.stderr and "cgxffcv: mpi" not in done.stdout


@pytest.mark.skipif(os.path.exists("/proc/driver/nvidia/version"), reason="there is a GPU")
@pytest.mark.parametrize(
    "switches, said",
    [
        ({}, "cuda    not found  no GPU here; CGXFFCV_CUDA=1 builds it anyway"),
        ({"CGXFFCV_CUDA": "1"}, "cuda    kernels    for 75;80;90 (there is no GPU): built now, minutes each"),
        ({"CGXFFCV_CUDA_ARCH": "86 90"}, "cuda    kernels    for 86;90 (CGXFFCV_CUDA_ARCH)"),
        (
            {"CGXFFCV_CUDA_ARCH": "90", "CGXFFCV_CUDA_QUICK": "1"},
            "cuda    kernels    for 90 (CGXFFCV_CUDA_ARCH): built now, quickly, but slow to run (CGXFFCV_CUDA_QUICK=1)",
        ),
    ],
)
def test_kernels_without_a_gpu(tmp_path, switches, said):
    toolkit = tmp_path / "toolkit"
    for name in ("bin/nvcc", "include/cudnn.h"):
        (toolkit / name).parent.mkdir(parents=True)
        (toolkit / name).touch(mode=0o755)
    done = build(tmp_path, CC=str(compiler(tmp_path, "nothing")), NVCC=str(toolkit / "bin/nvcc"), **switches)
    assert done.returncode != 0 and f"cgxffcv: {said}" in done.stdout, done.stdout
