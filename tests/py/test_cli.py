"""The command line: doctor, launch, and how commands end."""

import json
import os
import signal
import sys

import pytest
from _cgxffcv import CommError, PeerLost
from checkout import ROOT, run_python, start_command

from cgxffcv import Reader, __version__
from cgxffcv.app import cli, doctor, launch, process
from cgxffcv.errors import UserError

# --- the command ---------------------------------------------------------------------------------------------------


def test_version_is_one():
    assert run_python("-m", "cgxffcv", "--version").stdout.strip() == f"cgxffcv {__version__}"
    assert f'version = "{__version__}"' in (ROOT / "pyproject.toml").read_text()


@pytest.mark.parametrize(
    "arguments, expected",
    [
        ([], "required"),
        (["trian"], "invalid choice: 'trian'; expected one of write, convert, train, predict, export, report, "),
        (["trian"], "bench; did you mean train?; see cgxffcv --help"),
        (["bench"], "required: NAME; see"),
        (["bench", "cifra"], "cifar, table; did you mean cifar?; see cgxffcv bench --help"),
        (["info"], "required: FILE.beton"),
        (["launch"], "required: -np"),
    ],
)
def test_wrong_usage(arguments, expected):
    done = run_python("-m", "cgxffcv", *arguments, status=2)
    assert expected in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "arguments, expected",
    [
        (["info", "a", "b"], "unexpected argument 'b'; see cgxffcv info --help"),
        (["verify", "--jsn", "x"], "unknown option --jsn; did you mean --json?; see cgxffcv verify --help"),
        (["launch", "-np", "many", "train"], "expected a whole number from 1, not 'many'"),
        (["launch", "-np", "0", "train"], "expected a whole number from 1, not '0'"),
        (["launch", "-np", "2", "-m"], "launch: no command given"),
        (["launch", "-np", "1025", "train"], "-np 1025: at most 1024 ranks can share one machine's memory; for more"),
        (["launch", "-np", "100000", "--print", "train"], "-np 100000: at most 1024 ranks can share one machine's"),
        (["launch", "-np", "2", "write"], "write runs in one process, not on several ranks: cgxffcv write ..."),
        (["launch", "-np", "2", "convert"], "convert runs in one process, not on several ranks"),
        (["train", "--lerning_rate=1"], "did you mean --training.lr?; see cgxffcv train --help"),
        (["train", "--quantization-bits", "9"], "expected a whole number from 1 to 8, or 32; see cgxffcv train --help"),
        (["train", "--recipe.bias_scale=x"], "recipe.bias_scale = 'x': expected a number; see cgxffcv train --help"),
        (["bench", "allreduce", "-i", "1K", "-f", "2"], "-i and -f: give one of them"),
        *[(["bench", name, "--nonsense"], f"; see cgxffcv bench {name} --help") for name in cli.BENCHES],
    ],
)
def test_wrong_usage_is_one_line(arguments, expected):
    done = run_python("-m", "cgxffcv", *arguments, status=2)
    assert done.stdout == "" and expected in done.stderr, done.stderr
    prog = "cgxffcv train" if arguments[0] == "train" else "cgxffcv"
    assert done.stderr.startswith(f"{prog}: error: ") and done.stderr.count("\n") == 1


def test_help_names_every_command():
    text = run_python("-m", "cgxffcv", "--help").stdout
    assert all(name in text for name in ("write", "train", "info", "verify", "doctor", "bench", "launch"))
    text = run_python("-m", "cgxffcv", "bench", "--help").stdout
    assert all(f"\n  {name}" in text for name in cli.BENCHES)


@pytest.mark.parametrize(
    "command_line",
    [["write"], *(["bench", name] for name in ("allreduce", "beton", "cifar", "ddp", "loader", "quantize", "table"))],
)
def test_commands_without_docstrings(command_line):
    """Python -OO leaves them out."""
    done = run_python("-OO", "-m", "cgxffcv", *command_line, "--help")
    assert done.stderr == "" and done.stdout.startswith("usage: ")


def test_each_command_of_the_package_is_its_script(tmp_path):
    said = {}
    for words in (["-m", "cgxffcv", "write"], [str(ROOT / "write_datasets.py")]):
        done = run_python(*words, "--data.source=sample", cwd=tmp_path)
        assert "data/cifar_test.beton: 1,000 samples" in done.stdout, done.stderr
        assert not Reader(tmp_path / "data/cifar_test.beton").has_checksums
    done = run_python(str(ROOT / "write_datasets.py"), "--data.source=sample", "--data.checksums=true", cwd=tmp_path)
    assert Reader(tmp_path / "data/cifar_train.beton").has_checksums, done.stderr
    assert Reader(tmp_path / "data/cifar_test.beton").has_checksums
    for name, words in (
        ("cgxffcv train", ["-m", "cgxffcv", "train"]),
        ("train_cifar_ffcv_cgx.py", [str(ROOT / "train_cifar_ffcv_cgx.py")]),
    ):
        done = run_python(*words, "--epoch=1", cwd=tmp_path, status=2)
        assert done.stderr.startswith(f"{name}: error: unknown option --epoch"), done.stderr
        said[name] = done.stderr.replace(name, "")
    assert len(set(said.values())) == 1


# --- how a command ends --------------------------------------------------------------------------------------------


def ended(body, **options):
    """A process that runs `body` under process.run."""
    imports = "from cgxffcv import errors\nfrom cgxffcv.app import process\n"
    text = f"{imports}def main():\n    {body}\nprocess.run('prog', main)"
    return run_python("-c", text, **options)


@pytest.mark.parametrize(
    "body, code, message",
    [
        ("return 0", 0, ""),
        ("return 3", 3, ""),
        ("raise errors.UserError('mend this')", 1, "prog: error: mend this\n"),
        ("raise errors.ConfigError(['one', 'two'])", 2, "prog: error: one\nprog: error: two; see prog --help\n"),
        ("open('/no/such/file')", 1, "prog: error: /no/such/file: No such file or directory\n"),
        ("import _cgxffcv; raise _cgxffcv.BetonError('cut off')", 1, "prog: error: cut off\n"),
        ("import warnings; warnings.warn('rank 1 is silent')", 0, "prog: warning: rank 1 is silent\n"),
        ("raise KeyboardInterrupt", 130, "prog: interrupted\n"),
        ("raise SystemExit(4)", 4, ""),
    ],
)
def test_endings(body, code, message):
    assert ended(body, status=code).stderr == message


def test_without_the_extension_module(tmp_path):
    (tmp_path / "_cgxffcv.py").write_text("raise ImportError('libfoo.so.1: gone', name='_cgxffcv')")
    done = run_python("-m", "cgxffcv", "info", "x", folders=[tmp_path], cwd=tmp_path, status=1)
    assert "Traceback" not in done.stderr and "\n" not in done.stderr[:-1]
    assert done.stderr.startswith("cgxffcv: error: the extension module cannot be loaded: libfoo.so.1: gone; python -m")


def test_a_mistake_of_ours_shows_where():
    done = ended("raise ZeroDivisionError('x')", status=70)
    assert "Traceback" in done.stderr and "please report it" in done.stderr


def test_sigterm_ends_with_a_message():
    # Short sleeps: a signal that arrives just before a system call does not interrupt it.
    text = "import time\nfrom cgxffcv.app import process\ndef main():\n    print('up', flush=True)\n"
    text += "    while True:\n        time.sleep(0.02)\n"
    process = start_command(sys.executable, "-c", text + "process.run('prog', main)", cwd=ROOT)
    assert process.stdout.readline() == "up\n"
    process.send_signal(signal.SIGTERM)
    _, stderr = process.communicate(timeout=20)
    assert (process.returncode, stderr) == (143, "prog: terminated\n")


def test_ranks_say_who_they_are():
    world = {"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_LOCAL_SIZE": "2"}
    other, first = {**world, "OMPI_COMM_WORLD_RANK": "1"}, {**world, "OMPI_COMM_WORLD_RANK": "0"}
    done = ended("raise errors.ConfigError(['one'])", status=2, **other)
    assert done.stderr == "prog: rank 1: error: one; see prog --help\n"
    done = ended("raise errors.ConfigError(['one'])", status=2, **first)
    assert done.stderr == "prog: error: one; see prog --help\n"
    assert ended("raise OSError('disk')", status=1, **other).stderr == "prog: rank 1: error: disk\n"
    assert ended("raise KeyboardInterrupt", status=None, **other).stderr == ""


def test_the_rank_that_knows_best_speaks_first(monkeypatch):
    monkeypatch.setattr(process, "ranks", lambda: 4)
    delays = {}
    for number in (0, 1):
        monkeypatch.setattr(process, "rank", lambda number=number: number)
        errors = {
            "own": UserError("x"),
            "system": OSError("x"),
            "heard": CommError("rank 3 aborted"),
            "lost": PeerLost("rank 3 died"),
            "bug": ZeroDivisionError(),
        }
        delays[number] = {kind: process._verdict("prog", error)[1] for kind, error in errors.items()}
    assert delays[0]["own"] == 0 < delays[1]["own"] < delays[0]["heard"] == delays[1]["heard"]
    assert {delays[n][kind] for n in (0, 1) for kind in ("system", "lost", "bug")} == {0}


# --- ranks and cores -----------------------------------------------------------------------------------------------


def test_ranks_come_from_the_launcher(monkeypatch):
    for name in ("RANK", "SIZE", "LOCAL_SIZE"):
        monkeypatch.delenv(f"OMPI_COMM_WORLD_{name}", raising=False)
    assert (process.rank(), process.ranks(), process.local_ranks()) == (0, 1, 1)
    monkeypatch.setenv("OMPI_COMM_WORLD_RANK", "3")
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "4")
    monkeypatch.setenv("OMPI_COMM_WORLD_LOCAL_SIZE", "2")
    assert (process.rank(), process.ranks(), process.local_ranks()) == (3, 4, 2)


@pytest.mark.parametrize(
    "usable, cores, ranks, expected",
    [(8, 8, 1, 8), (8, 8, 2, 4), (8, 8, 3, 2), (2, 2, 4, 1), (1, 8, 2, 1), (4, 8, 2, 4), (4, 8, 1, 4)],
)
def test_cores_of_a_rank(monkeypatch, usable, cores, ranks, expected):
    monkeypatch.setattr(process.os, "sched_getaffinity", lambda pid: set(range(usable)))
    monkeypatch.setattr(process.os, "cpu_count", lambda: cores)
    monkeypatch.setattr(process, "ranks", lambda: ranks)
    monkeypatch.setattr(process, "local_ranks", lambda: ranks)
    assert process.cores_of_this_rank() == expected


# --- launch --------------------------------------------------------------------------------------------------------


def test_launch_command():
    words = launch.command(2, ["train.py", "--epochs", "1"], cores=8, root=True, environ={})
    assert words[:3] == ["mpirun", "-np", "2"] and "--allow-run-as-root" in words
    assert words[words.index("-x") + 1] == "OMP_NUM_THREADS=4"
    assert words[-4:] == [sys.executable, "train.py", "--epochs", "1"]
    assert words[words.index("--mca") :][:3] == ["--mca", "btl", "^tcp"]
    mine = {"OMP_NUM_THREADS": "1", "OMPI_MCA_btl": "tcp,self"}
    words = launch.command(3, ["prog"], cores=2, root=False, environ=mine)
    assert "--mca" not in words
    assert "--allow-run-as-root" not in words and "-x" not in words and words[-1] == "prog"


def test_launch_prints(capsys):
    assert cli.run(["launch", "-np", "2", "--print", "a.py", "--x", "1"]) == 0
    assert capsys.readouterr().out.startswith("+ mpirun -np 2 ")


def test_launch_starts_modules_and_our_own_commands():
    def program(*words):
        return launch.command(2, words, cores=2, root=False, environ={"OMP_NUM_THREADS": "1"})[9:]

    assert program("train", "--epochs", "1") == [sys.executable, "-m", "cgxffcv", "train", "--epochs", "1"]
    assert program("bench", "allreduce") == [sys.executable, "-m", "cgxffcv", "bench", "allreduce"]
    assert program("-m", "json.tool", "x") == [sys.executable, "-m", "json.tool", "x"]
    assert program("./train", "x") == ["./train", "x"]


def test_launch_takes_options_for_the_program(capsys):
    for words in (["-m", "a.b", "--x", "-np"], ["--", "a.py", "--print"], ["train", "--help"]):
        assert cli.run(["launch", "-np", "2", "--print", *words]) == 0
        assert capsys.readouterr().out.rstrip().endswith(" ".join(word for word in words if word != "--"))


def test_launch_mistakes(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="-np/-n/--np: expected a whole number from 1, not '0'"):
        cli.run(["launch", "-np", "0", "a.py"])
    with pytest.raises(UserError, match="no command given"):
        cli.run(["launch", "-np", "2"])
    monkeypatch.setattr(launch.shutil, "which", lambda name: "/usr/bin/mpirun" if name == "mpirun" else None)
    with pytest.raises(UserError, match="a.py: no such script here .*cgxffcv launch -np 2 train"):
        cli.run(["launch", "-np", "2", "a.py"])
    with pytest.raises(UserError, match="frobnicate: no such program; a script's name ends in .py"):
        cli.run(["launch", "-np", "2", "frobnicate"])
    with pytest.raises(UserError, match="trian: no such program; did you mean train\\?"):
        cli.run(["launch", "--np=2", "trian"])
    monkeypatch.setattr(launch.shutil, "which", lambda name: None)
    with pytest.raises(UserError, match="apt-get install -y openmpi-bin"):
        cli.run(["launch", "-np", "2", "a.py"])


def test_launch_runs_ranks(tmp_path):
    if launch.shutil.which("mpirun") is None:
        pytest.skip("mpirun is not installed")
    # Through files: mpirun may lose the last output of a program that ends without having called MPI.
    program = (
        "import os, pathlib, sys; e = os.environ;"
        "pathlib.Path(sys.argv[1], e['OMPI_COMM_WORLD_RANK']).write_text(e['OMP_NUM_THREADS'])"
    )
    run_python("-m", "cgxffcv", "launch", "-np", "3", sys.executable, "-c", program, str(tmp_path))
    threads = str(max(len(os.sched_getaffinity(0)) // 3, 1))
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {str(rank): threads for rank in range(3)}


# --- doctor --------------------------------------------------------------------------------------------------------


def test_doctor_as_text_and_as_json(capsys):
    assert cli.run(["doctor"]) == 0
    text = capsys.readouterr().out
    for word in ("cgxffcv", "processor", "avx2", "memory", "GPU", "onednn", "mpi", "jpeg", "cuda"):
        assert word in text
    assert cli.run(["doctor", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["core"]["loaded"] and report["cgxffcv"] == __version__
    assert (report["remedy"] is None) == (report["missing"] == [])


def made_up(**changes):
    report = {
        "core": {
            "loaded": True,
            "path": "x.so",
            "info": {"onednn": True, "mpi": True, "jpeg": True, "cuda": False, "compiler": "1"},
        },
        "gpu": {"driver": None, "devices": []},
        "cuda": {},
        "mpi": {
            "mpirun": "/usr/bin/mpirun",
            "open_mpi": "4.1.4",
            "cuda_aware": False,
            "why_no_library": None,
            "library": {"family": "Open MPI", "path": "libmpi.so", "version": "Open MPI v4.1.4"},
        },
        "found": {"onednn": "3", "mpi": "Open MPI 4.1.4", "jpeg": "so", "cuda": None, "nccl": None},
        "gcc": "12.2.0",
    }
    for key, value in changes.items():
        report[key] = {**report[key], **value} if isinstance(report[key], dict) else value
    return report


def test_doctor_knows_what_a_wheel_brought(monkeypatch, tmp_path):
    (tmp_path / "cgxffcv.libs").mkdir()
    (tmp_path / "cgxffcv.libs/libjpeg-210b8ad5.so.62.3.0").touch()
    monkeypatch.setattr(doctor, "core", lambda: {"loaded": True, "path": str(tmp_path / "_cgxffcv.so"), "info": {}})
    assert doctor.found()["jpeg"] == "libjpeg-210b8ad5.so.62.3.0, from the wheel"
    monkeypatch.setattr(doctor, "core", lambda: {"loaded": False, "error": "none"})
    assert doctor.found()["jpeg"] == doctor.ctypes.util.find_library("jpeg")


def test_doctor_finds_nothing_wrong():
    assert doctor.diagnose(made_up()) == ([], None)


def test_doctor_names_one_command(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(doctor.os, "geteuid", lambda: 1000)
    info = {"onednn": True, "mpi": False, "jpeg": False, "cuda": False}
    report = made_up(core={"info": info}, found={"mpi": None, "jpeg": None})
    checkout = doctor.checkout
    monkeypatch.setattr(doctor, "checkout", lambda: None)
    missing, remedy = doctor.diagnose(report)
    assert [line.split()[0] for line in missing] == ["mpi", "jpeg"] and "\n" not in remedy
    assert remedy.startswith("sudo apt-get install -y libjpeg-dev && ")
    pip = f"{sys.executable} -m pip install --force-reinstall --no-deps --no-cache-dir"
    monkeypatch.setattr(doctor, "_origin", dict)
    assert doctor.diagnose(report)[1].endswith(f" && {pip} SOURCE")
    (tmp_path / "Makefile").write_text("# cgxffcv")
    monkeypatch.setattr(doctor, "checkout", checkout)
    assert doctor.diagnose(report)[1].endswith(f" && {pip} {tmp_path}")  # another Python than make would build for
    monkeypatch.setattr(doctor.sys, "prefix", str(tmp_path / ".venv"))
    assert doctor.diagnose(report)[1] == "make clean build"
    monkeypatch.chdir("/")
    assert doctor.diagnose(report)[1] == f"make -C {ROOT} clean build"


@pytest.mark.parametrize(
    "origin, source",
    [
        ({}, "SOURCE"),
        ({"url": "file://{here}/cgxffcv-0.1.0-cp311.whl", "archive_info": {}}, "SOURCE"),
        ({"url": "file://{here}/cgxffcv-0.1.0.tar.gz", "archive_info": {}}, "{here}/cgxffcv-0.1.0.tar.gz"),
        ({"url": "file://{here}/gone.tar.gz", "archive_info": {}}, "SOURCE"),
        ({"url": "file://{here}/a%20tree", "dir_info": {}}, "'{here}/a tree'"),
        ({"url": "https://example.org/c.git", "vcs_info": {"vcs": "git"}}, "git+https://example.org/c.git"),
    ],
)
def test_doctor_builds_again_from_where_it_came(monkeypatch, tmp_path, origin, source):
    for name in ("cgxffcv-0.1.0-cp311.whl", "cgxffcv-0.1.0.tar.gz"):
        (tmp_path / name).touch()
    (tmp_path / "a tree").mkdir()
    (tmp_path / "a tree" / "Makefile").write_text("# cgxffcv")
    monkeypatch.chdir("/")
    monkeypatch.setattr(doctor, "__file__", "/usr/lib/python3/site-packages/cgxffcv/app/doctor.py")
    origin = json.loads(json.dumps(origin).replace("{here}", str(tmp_path)))
    monkeypatch.setattr(doctor, "_origin", lambda: origin)
    remedy = doctor.remedy(doctor.Repair(build=True))
    assert remedy.endswith(f"pip install --force-reinstall --no-deps --no-cache-dir {source.format(here=tmp_path)}")
    assert doctor.remedy(doctor.Repair()) is None


@pytest.mark.parametrize(
    "error, remedy",
    [
        ("libjpeg.so.62: cannot open shared object file", "apt-get install -y libjpeg-dev"),
        ("libstdc++.so.6: version `GLIBCXX_3.4.32' not found", "apt-get install -y libstdc++6"),
        ("libdnnl.so.3: cannot open shared object file", "-m pip install --force-reinstall onednn-cpu-gomp"),
        ("No module named '_cgxffcv'", "make clean build"),
        ("undefined symbol: PyFoo", "make clean build"),
    ],
)
def test_a_library_that_is_gone_comes_back_without_a_build(monkeypatch, tmp_path, error, remedy):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(doctor, "checkout", lambda: tmp_path)
    monkeypatch.setattr(doctor.sys, "prefix", str(tmp_path / ".venv"))
    report = made_up(core={"loaded": False, "error": error, "info": {}})
    found = doctor.diagnose(report)[1]
    assert found.endswith(remedy)
    assert ("build" in found.replace(sys.executable, "PYTHON")) == ("build" in remedy)


def test_what_is_only_not_installed_needs_no_build():
    missing, remedy = doctor.diagnose(made_up(mpi={"mpirun": None}))
    assert missing == ["mpirun, which starts several ranks: not installed"]
    assert remedy.endswith("apt-get install -y openmpi-bin")
    missing, remedy = doctor.diagnose(made_up(mpi={"mpirun": None, "library": None, "why_no_library": "none is here"}))
    assert missing == ["the MPI library (several ranks under mpirun): none is here"]
    assert remedy.endswith("apt-get install -y openmpi-bin")


H100 = {
    "name": "NVIDIA H100",
    "compute_capability": (9, 0),
    "multiprocessors": 132,
    "memory_bytes": 80 * 10**9,
    "free_bytes": 79 * 10**9,
    "driver_version": 13000,
    "runtime_version": 13000,
    "problem": None,
}
CUDA = {
    "architectures": "75;80;86;90",
    "why_no_device": "",
    "devices": [H100],
    "cudnn": "9.13.0",
    "nccl": "2.28.9",
    "plan_cache": {"folder": "/home/me/.cache/cgxffcv", "writable": True},
}
WITH_CUDA = {"info": {"onednn": True, "mpi": True, "jpeg": True, "cuda": True, "compiler": "1"}}
DRIVER = {"driver": "580.1", "devices": [{"name": "NVIDIA H100"}]}


def test_doctor_on_gpus(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(doctor, "checkout", lambda: tmp_path)
    monkeypatch.setattr(doctor.os, "geteuid", lambda: 1000)
    monkeypatch.setattr(doctor.sys, "prefix", str(tmp_path / ".venv"))
    lost = {
        **H100,
        "name": "Tesla M40",
        "compute_capability": (5, 2),
        "problem": "rebuild with CGXFFCV_CUDA_ARCH=52",
        "free_bytes": None,
    }
    unwritable = {"folder": "/nowhere", "writable": False}
    cases = [  # what is there, what doctor says about it (None: nothing), its remedy
        ({"core": WITH_CUDA, "gpu": DRIVER, "cuda": CUDA}, None, None),
        (
            {"gpu": DRIVER},
            "there is a GPU; the CUDA toolkit is not installed",
            "sudo apt-get install -y cuda-toolkit-13-0 libcudnn9-dev-cuda-13 libnccl-dev && make clean build",
        ),
        (
            {"gpu": DRIVER, "found": {"cuda": "CUDA toolkit 13.0"}},
            "CUDA toolkit 13.0 is installed, but this build was made",
            "make clean build",
        ),
        (
            {"core": WITH_CUDA, "gpu": DRIVER, "cuda": {**CUDA, "devices": [], "why_no_device": "update the driver"}},
            "GPUs cannot be used: update the driver",
            None,
        ),
        (
            {"core": WITH_CUDA, "gpu": DRIVER, "cuda": {**CUDA, "devices": [H100, lost]}},
            "GPU 1 (Tesla M40) cannot be used",
            "CGXFFCV_CUDA_ARCH='75;80;86;90;52' make clean build",
        ),
        (
            {"core": WITH_CUDA, "gpu": DRIVER, "cuda": {**CUDA, "plan_cache": unwritable}},
            "/nowhere is not writable: each process looks for the fastest convolutions again; set CGXFFCV_CACHE",
            None,
        ),
        (
            {"core": WITH_CUDA, "gpu": DRIVER, "cuda": {**CUDA, "devices": [H100, H100], "nccl": None}},
            "NCCL is not installed: uncompressed gradients are sent between the GPUs by our own kernels only",
            "sudo apt-get install -y libnccl2 libnccl-dev && make clean build",
        ),
        ({"core": WITH_CUDA, "cuda": {**CUDA, "devices": [], "why_no_device": "no driver"}}, None, None),
    ]
    for there, expected, command in cases:
        missing, remedy = doctor.diagnose(made_up(**there))
        assert len(missing) == (expected is not None) and remedy == command, (missing, remedy)
        assert expected is None or expected in missing[0], missing
    text = "\n".join(doctor._cuda_lines({**CUDA, "devices": [H100, lost]}))
    for part in (
        "capabilities 75, 80, 86, 90; runtime 13.0, the driver supports 13.0; cuDNN 9.13.0, NCCL 2.28.9",
        "0: NVIDIA H100, compute capability 9.0, 132 multiprocessors, 79.0 of 80.0 GB free, usable",
        "1: Tesla M40, compute capability 5.2, 132 multiprocessors, 80.0 GB, CANNOT BE USED",
        ".cache/cgxffcv (writable)",
    ):
        assert part in text
    assert "no device: why" in "\n".join(doctor._cuda_lines({**CUDA, "devices": [], "why_no_device": "why"}))


@pytest.mark.parametrize(
    "architectures, capability, runs",
    [
        ("75;80;90", (8, 0), True),
        ("75;80;90", (8, 9), True),
        ("75;80;90", (10, 0), True),
        ("90", (12, 1), True),
        ("80;90", (7, 5), False),
        ("89;90", (8, 6), False),
        ("100;120", (11, 0), False),
        ("90a", (9, 0), True),
        ("emulated", (9, 0), True),
    ],
)
def test_which_gpus_a_build_has_code_for(architectures, capability, runs):
    problem = doctor._no_code(architectures, capability)
    assert (problem is None) == runs
    assert runs or problem.endswith(f"CGXFFCV_CUDA_ARCH={capability[0]}{capability[1]}")


def test_where_plans_are_remembered(monkeypatch, tmp_path):
    for name in ("CGXFFCV_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert doctor.plan_cache() == {"folder": f"{tmp_path}/.cache/cgxffcv", "writable": True}
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert doctor.plan_cache()["folder"] == f"{tmp_path}/.cache/cgxffcv"
    monkeypatch.setenv("XDG_CACHE_HOME", f"{tmp_path}/x")
    assert doctor.plan_cache()["folder"] == f"{tmp_path}/x/cgxffcv"
    (tmp_path / "file").touch()
    monkeypatch.setenv("CGXFFCV_CACHE", f"{tmp_path}/file/below")
    assert doctor.plan_cache() == {"folder": f"{tmp_path}/file/below", "writable": False}


def test_doctor_when_the_module_cannot_be_loaded(tmp_path):
    # A module of that name that fails, like one whose libraries are missing.
    (tmp_path / "_cgxffcv.py").write_text("raise ImportError('libfoo.so.1: cannot open shared object file')")
    done = run_python("-m", "cgxffcv", "doctor", folders=[tmp_path], cwd=tmp_path, status=1)
    assert "Traceback" not in done.stderr
    assert "NOT LOADED" in done.stdout and "libfoo.so.1" in done.stdout and f"make -C {ROOT} clean build" in done.stdout


def test_doctor_does_not_wait_for_a_tool_that_hangs(tmp_path, monkeypatch):
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\nexec sleep 60\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(doctor, "TIMEOUT", 0.2)
    assert doctor.output("nvidia-smi") is None
    assert isinstance(doctor.gpus()["devices"], list)


def test_doctor_reads_nvidia_smi(tmp_path, monkeypatch):
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 'NVIDIA H100, 81559 MiB, 9.0, 570.1'\necho 'NVIDIA T4, 15360 MiB, 7.5, 570.1'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    found = doctor.gpus()
    assert found["driver"] == "570.1"
    assert [d["name"] for d in found["devices"]] == ["NVIDIA H100", "NVIDIA T4"]
    assert found["devices"][1]["compute_capability"] == "7.5"
