"""Which MPI library is opened, when, and the message about one that cannot be used."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import _cgxffcv
import numpy as np
import pytest
import tiny_beton
from checkout import run_command, run_python
from ranks import environment, mpirun, needs_mpirun

HERE = Path(__file__).resolve().parent
LOADED = "import sys; text = open('/proc/self/maps').read(); sys.exit('libmpi' in text or 'libopen-pal' in text)"
OPEN = "import _cgxffcv; print(_cgxffcv.mpi_library(open=True))"
HYDRA = {"PMI_RANK": "1", "PMI_SIZE": "2", "MPI_LOCALRANKID": "1", "MPI_LOCALNRANKS": "2"}

pytestmark = pytest.mark.skipif(not _cgxffcv.build_info()["mpi"], reason="this build has no MPI")


def python(code, **variables):
    return run_python("-c", code, status=None, env=environment(**variables))


def stand_in(folder, name, *flags):
    target = folder / name
    command = ["gcc", "-shared", "-fPIC", *flags, str(HERE / "other_mpi.c"), "-o", str(target)]
    subprocess.run(command, check=True)
    return target


@pytest.mark.parametrize(
    "code", ["import _cgxffcv", "from cgxffcv import comm; comm.world().allreduce(__import__('numpy').ones(3, 'f4'))"]
)
def test_nothing_of_mpi_is_loaded_before_ranks_meet(code):
    done = python(f"{code}\nimport _cgxffcv\nassert _cgxffcv.mpi_library() is None\n{LOADED}")
    assert done.returncode == 0, done.stderr


@needs_mpirun
def test_the_launchers_is_opened(tmp_path):
    """Also if the process is not the launcher's own child."""
    # A line in one piece: an unbuffered print writes the line's end separately, and two ranks' lines would mix.
    code = "import os, _cgxffcv; from cgxffcv import comm; world = comm.world()"
    code += "; os.write(1, f'{_cgxffcv.mpi_library()}\\n'.encode())"
    command = [*mpirun(2, recover=False), "sh", "-c", f'"{sys.executable}" -c "{code}" && true']
    done = run_command(*command, env=environment())
    told = [eval(line) for line in done.stdout.splitlines()]
    assert len(told) == 2 and told[0] == told[1]
    says = run_command("mpirun", "--version").stdout
    assert told[0]["version"].removeprefix("Open MPI v") in says
    assert Path(told[0]["path"]).is_file() and told[0]["family"] in ("Open MPI", "MPICH", "MPI 5.0")


def test_one_beside_mpirun_on_path(tmp_path):
    """A prefix as a wheel or a module system makes it, found from the first mpirun on PATH."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "lib").mkdir()
    run = tmp_path / "bin" / "mpirun"
    run.write_text("#!/bin/sh\n")
    run.chmod(0o755)
    library = stand_in(tmp_path / "lib", "libmpi.so.12")
    done = python(OPEN, PATH=f"{tmp_path / 'bin'}:{os.environ['PATH']}", **HYDRA)
    assert str({"family": "MPICH", "path": str(library)})[:-1] in done.stdout, done.stderr
    assert "'MPICH Version:      9.9'" in done.stdout


def test_one_in_the_prefix_of_pythons_packages(tmp_path):
    packages = tmp_path / "lib" / "python3" / "site-packages"
    packages.mkdir(parents=True)
    library = stand_in(tmp_path / "lib", "libmpi.so.12")
    code = f"import sys; sys.path.append({str(packages)!r}); {OPEN}"
    done = python(code, PATH="/nowhere", **HYDRA)
    assert os.path.realpath(eval(done.stdout)["path"]) == str(library), done.stderr


def test_one_of_another_launcher_is_refused_and_named(tmp_path):
    """The stand-in knows one rank, and ends the process if it sees a handle that MPICH does not have."""
    library = stand_in(tmp_path, "libmpi.so.12")
    code = "from cgxffcv import comm; comm.world(timeout=20)"
    done = python(code, CGXFFCV_MPI_LIBRARY=str(library), **HYDRA)
    assert (
        f"started 2 ranks, but MPI reports 1 (this is rank 0): the launcher and the MPI library, {library} (MPICH"
        in done.stderr
    )
    assert "cgxffcv launch -np 2" in done.stderr and "CGXFFCV_MPI_LIBRARY" in done.stderr
    assert "other_mpi: finalised" in done.stderr and done.returncode == 1


@pytest.mark.parametrize("initialised", [False, True])
def test_handlers_of_faults_stay(tmp_path, initialised):
    """A file that is truncated after MPI was loaded: the guard of mapped files still works, and so does Python's
    faulthandler."""
    library = stand_in(tmp_path, "libmpi.so.12")
    name = tiny_beton.write(tmp_path / "x.beton", {"x": ("array", list(np.zeros((64, 4096), np.uint8)))}, 1 << 16)
    come = (
        "from cgxffcv import comm\ntry: comm.world(timeout=20)\nexcept _cgxffcv.CommError: pass"
        if initialised
        else OPEN
    )
    code = f"""import os, faulthandler, _cgxffcv; from cgxffcv import Loader
faulthandler.enable()
loader = Loader({str(name)!r}, 4, num_workers=1)
{come}
os.truncate({str(name)!r}, 8192)
try: list(loader)
except _cgxffcv.BetonError as error: print(error, flush=True)
faulthandler._sigsegv()"""
    done = python(code, CGXFFCV_MPI_LIBRARY=str(library), **HYDRA)
    assert "has become shorter" in done.stdout, done.stderr
    assert done.returncode == -signal.SIGSEGV and "Fatal Python error: Segmentation fault" in done.stderr


def test_what_is_no_mpi_is_refused(tmp_path):
    (tmp_path / "empty.c").write_text("int nothing;\n")
    subprocess.run(["gcc", "-shared", str(tmp_path / "empty.c"), "-o", str(tmp_path / "libmpi.so.40")], check=True)
    done = python(OPEN, CGXFFCV_MPI_LIBRARY=str(tmp_path / "libmpi.so.40"))
    assert "CommError" in done.stderr and f"{tmp_path}/libmpi.so.40 has no MPI_Initialized" in done.stderr
    assert "openmpi-bin" in done.stderr


def test_an_unknown_family_is_refused(tmp_path):
    library = stand_in(tmp_path, "libmpi.so.1", "-DUNKNOWN")
    done = python(OPEN, CGXFFCV_MPI_LIBRARY=str(library))
    assert f"CommError: {library} calls itself A library of 1994: it is neither Open MPI nor MPICH" in done.stderr


def test_one_that_is_not_there_is_named(tmp_path):
    done = python(OPEN, CGXFFCV_MPI_LIBRARY="/nowhere/libmpi.so.40")
    assert "NotBuiltError: CGXFFCV_MPI_LIBRARY=/nowhere/libmpi.so.40 cannot be opened" in done.stderr


def test_two_in_one_process_are_refused(tmp_path):
    first, second = stand_in(tmp_path, "libmpi.so.12", "-Wl,-soname,libmpi.so.12"), stand_in(tmp_path, "libother.so")
    code = f"import ctypes; ctypes.CDLL({str(first)!r}); {OPEN}"
    done = python(code, CGXFFCV_MPI_LIBRARY=str(second))
    assert f"CommError: CGXFFCV_MPI_LIBRARY={second}, but this process has already opened {first}" in done.stderr
    done = python(code, PATH="/nowhere")  # an MPI that is already loaded is used
    assert eval(done.stdout)["path"] == str(first), done.stderr
