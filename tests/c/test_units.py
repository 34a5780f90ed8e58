"""Compiles each test_*.c here with the sources its first line names, under ASan and UBSan, and runs it."""

import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
CSRC = HERE.parents[1] / "csrc"
FLAGS = ["-std=gnu11", "-D_GNU_SOURCE", "-O1", "-g", "-pthread", "-ffp-contract=off", "-Wall", "-Wextra", "-Werror"]
SANITIZE = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
# As in setup.py: what a file may use is in the end of its name.
ISA_FLAGS = {
    "_avx2": ["-mavx2", "-mfma", "-mf16c", "-mbmi2"],
    "_avx512": ["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mavx2", "-mfma", "-mf16c", "-mbmi2"],
}


def compile_objects(sources, directory, sanitize=SANITIZE):
    """Sources of special instruction sets, as objects; the others as they are."""
    result = []
    for source in sources:
        isa = next((flags for suffix, flags in ISA_FLAGS.items() if source.stem.endswith(suffix)), None)
        if isa is None:
            result.append(str(source))
            continue
        result.append(str(directory / f"{source.stem}.o"))
        command = ["gcc", *FLAGS, *sanitize, *isa, f"-I{CSRC}", "-c", str(source), "-o", result[-1]]
        subprocess.run(command, check=True)
    return result


@pytest.mark.parametrize("test", sorted(HERE.glob("test_*.c")), ids=lambda p: p.stem)
def test_unit(test, tmp_path):
    first = test.read_text().splitlines()[0]
    assert first.startswith("// sources: "), first
    patterns = first.removeprefix("// sources: ").split()
    sources = compile_objects([path for pattern in patterns for path in sorted(CSRC.glob(pattern))], tmp_path)
    assert sources, first
    program = tmp_path / test.stem
    subprocess.run(
        ["gcc", *FLAGS, *SANITIZE, f"-I{CSRC}", f"-I{HERE}", str(test), *sources, "-o", str(program), "-lm"], check=True
    )
    done = subprocess.run([str(program)], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "checks, 0 failures" in done.stdout
