"""nn/cuda/conv/cudnn_library.c over libraries that pretend to be cuDNN."""

import os
import subprocess
from pathlib import Path

import pytest
from c_units import FLAGS, INCLUDE, SANITIZE, sources
from checkout import run_command

HERE = Path(__file__).resolve().parent / "cudnn"
PLACES = [os.environ.get("CUDA_HOME", "/usr/local/cuda") + "/include", "/usr/local/include", "/usr/include"]
HEADERS = [place for place in PLACES if (Path(place) / "cudnn.h").is_file()]
NOT_BUILT = 160


def number(name, header):
    words = subprocess.run(
        ["gcc", "-E", "-P", "-x", "c", f"-isystem{HEADERS[0]}", "-"],
        input=f"#include <{header}>\nfound {name}\n",
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    return int(words[-1])


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    if not HEADERS:
        pytest.skip("needs the headers of cuDNN and CUDA")
    target = tmp_path_factory.mktemp("cudnn") / "program"
    files = [HERE / "program.c", *sources("base"), *sources(others=["nn/cuda/conv/cudnn_library.c"])]
    gcc = ["gcc", *FLAGS, *SANITIZE, f"-isystem{HEADERS[0]}", *INCLUDE]
    subprocess.run([*gcc, *map(str, files), "-o", str(target), "-ldl", "-lm"], check=True)
    return target


def opened(program, folder, version, cuda, functions=True):
    library = folder / "libcudnn.so.9"
    flags = [f"-DVERSION={version}", f"-DCUDA_VERSION_SAID={cuda}", *["-DFUNCTIONS"] * functions]
    subprocess.run(["gcc", "-shared", "-fPIC", *flags, str(HERE / "fake.c"), "-o", str(library)], check=True)
    done = run_command(program, status=None, CGXFFCV_CUDNN_LIBRARY=library)
    assert done.stderr == ""
    return done.returncode, done.stdout.rstrip(), library


def test_one_of_this_builds_versions_is_taken(program, tmp_path):
    cudnn, cuda = number("CUDNN_MAJOR", "cudnn.h"), number("CUDART_VERSION", "cuda_runtime_api.h")
    assert opened(program, tmp_path, cudnn * 10000 + 9999, cuda)[:2] == (0, f"{cudnn * 10000 + 9999}")


def test_a_wheel_for_another_cuda_is_refused(program, tmp_path):
    cudnn, cuda = number("CUDNN_MAJOR", "cudnn.h"), number("CUDART_VERSION", "cuda_runtime_api.h") // 1000
    code, said, library = opened(program, tmp_path, cudnn * 10000, (cuda - 1) * 1000 + 90)
    assert code == NOT_BUILT and said.startswith("0 ")
    assert f"{library} is cuDNN {cudnn} for CUDA {cuda - 1}, but this build needs cuDNN {cudnn} for CUDA {cuda}" in said
    assert "pip install 'cgxffcv[cuda13]'" in said


def test_another_major_version_is_refused(program, tmp_path):
    cudnn, cuda = number("CUDNN_MAJOR", "cudnn.h"), number("CUDART_VERSION", "cuda_runtime_api.h")
    code, said, _ = opened(program, tmp_path, (cudnn + 1) * 10000, cuda)
    assert code == NOT_BUILT and f"is cuDNN {cudnn + 1} for" in said


def test_one_without_the_functions_is_refused(program, tmp_path):
    code, said, library = opened(program, tmp_path, 90000, 13000, functions=False)
    assert code == NOT_BUILT and f"{library} has no cudnnGetErrorString: pip install" in said


def test_none_is_said_with_the_remedy(program):
    done = run_command(program, status=NOT_BUILT, CGXFFCV_CUDNN_LIBRARY="/nowhere/libcudnn.so.9")
    assert "convolutions on GPUs need cuDNN: /nowhere/libcudnn.so.9" in done.stdout
    assert "pip install 'cgxffcv[cuda13]', or apt install libcudnn9-cuda-13" in done.stdout
