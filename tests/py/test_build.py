"""The extension module as a binary: what it exports and how it describes itself."""

import _cgxffcv
from checkout import run_command


def test_only_the_init_function_is_exported():
    symbols = run_command("nm", "-D", "--defined-only", _cgxffcv.__file__).stdout.split("\n")
    names = {line.split()[-1] for line in symbols if line.split()}
    assert names - {"_init", "_fini", "__bss_start", "_edata", "_end"} == {"PyInit__cgxffcv"}


def test_build_info_names_every_optional_part():
    info = _cgxffcv.build_info()
    assert {"cuda", "cuda_architectures", "mpi", "nccl", "onednn", "jpeg", "cpu", "compiler", "cpus"} == set(info)
    assert info["cpus"] >= 1


def test_without_a_gpu_the_reason_is_given():
    if _cgxffcv.devices():
        assert _cgxffcv.why_no_device() == ""
    else:
        assert "CUDA" in _cgxffcv.why_no_device()
