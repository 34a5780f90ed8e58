"""Sums through NCCL without GPUs: comm/nccl.c over a library that pretends to be CUDA and NCCL, with threads as ranks,
under ASan and UBSan."""

import os
import subprocess
from pathlib import Path

import pytest
from c_units import FLAGS, INCLUDE, SANITIZE, sources
from checkout import run_command

HERE = Path(__file__).resolve().parent

PLACES = [os.environ.get("CUDA_HOME", "/usr/local/cuda") + "/include", "/usr/local/include", "/usr/include"]


def folder_of(header):
    return next((place for place in PLACES if (Path(place) / header).is_file()), None)


@pytest.mark.skipif(
    folder_of("nccl.h") is None or folder_of("cuda_runtime.h") is None, reason="needs the headers of CUDA and NCCL"
)
def test_sums_through_nccl(tmp_path, monkeypatch):
    library, program = tmp_path / "libfake.so", tmp_path / "program"
    include = [f"-isystem{folder_of(header)}" for header in ("nccl.h", "cuda_runtime.h")]
    gcc = ["gcc", *FLAGS, *SANITIZE, *include, *INCLUDE, f"-I{HERE / 'nccl'}"]
    subprocess.run([*gcc, "-shared", "-fPIC", str(HERE / "nccl/fake.c"), "-o", str(library)], check=True)
    rooms = sources("base", "comm", "device", others=["nccl"])
    files = [HERE / "nccl/program.c", HERE / "nccl/device.c", *rooms]
    link = [f"-L{tmp_path}", "-lfake", f"-Wl,-rpath,{tmp_path}", "-Wl,--allow-multiple-definition", "-ldl", "-lm"]
    subprocess.run([*gcc, *map(str, files), "-o", str(program), *link], check=True)
    monkeypatch.delenv("CGXFFCV_COMM_NCCL", raising=False)
    assert "checks, 0 failures" in run_command(program, CGXFFCV_NCCL_LIBRARY=library).stdout
