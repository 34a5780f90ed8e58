"""Damaged files and JPEG streams under AddressSanitizer and UBSan. beton.c and jpeg.c try all damage of small files
that cover every kind of field. The fuzz targets (fuzz_*.c, fuzz_python.py) replay their corpora, and seeded mutations
of them; tools/fuzz.sh lets libFuzzer and Atheris look for more."""

import lzma
from pathlib import Path

import _cgxffcv
import beton_files as files
import beton_model as model
import numpy as np
import pytest
from c_units import SANITIZE, Compiler, sources_of
from checkout import CSRC, ROOT, run_command, run_python

from cgxffcv import DatasetWriter

HERE = Path(__file__).resolve().parent

# More mutations than a daily run has: each target's own count, for a few seconds of a core.
PYTHON_TARGETS = {"yaml": 5, "safetensors": 200, "pickle": 40}
TARGETS = {"reader": 300, "jpeg": 3000, "huffman": 1500, "writer": 200}


@pytest.fixture(scope="module")
def build(tmp_path_factory):
    """Compiles a program of this folder with others of its files and the rooms that its first line names."""
    compiler = Compiler(tmp_path_factory.mktemp("fuzz"), *SANITIZE)

    def build(name, *others):
        main = HERE / f"{name}.c"
        libraries = ["-ljpeg"] if CSRC / "image/jpeg.c" in sources_of(main) else []
        wraps = [f"-Wl,--wrap={call}" for call in ("mmap", "munmap")] if "map.c" in others else []
        return compiler.program(main, *(HERE / other for other in others), link=["-lm", *libraries, *wraps])

    return build


def run(program, *arguments):
    return run_command(program, *arguments, limit=300).stdout


@pytest.fixture(scope="module")
def beton(build):
    return build("beton")


ALL_KINDS = [
    ("image", "raw", None),
    ("int", "n", None),
    ("json", "doc", None),
    ("float", "x", None),
    ("bytes", "sixteen letters!", None),
    ("array", "arr", ("<i4", (2, 3))),
    ("tensor", "t", ("|u1", (1, 3, 1))),
    ("image", "jpg", None),
]


def jpeg(seed):
    rng = np.random.default_rng(seed)
    return _cgxffcv.jpeg_encode(np.repeat(np.repeat(rng.integers(0, 256, (2, 3, 3), np.uint8), 8, 0), 8, 1), 80)


def all_kinds(count):
    samples = files.random_samples(np.random.default_rng(1), ALL_KINDS[:-1], count)
    return [(*sample, ("jpg", 24, 16, jpeg(i))) for i, sample in enumerate(samples)]


@pytest.mark.parametrize("count", [0, 3])
@pytest.mark.parametrize("checksums", [False, True])
def test_damaged_files_of_ours(beton, tmp_path, count, checksums):
    path = tmp_path / "x.beton"
    fields = files.package_fields(ALL_KINDS)
    writer = DatasetWriter(path, fields, page_size=4096, allow_small_pages=True, num_workers=1, checksums=checksums)
    writer.from_indexed_dataset(files.package_samples(ALL_KINDS, all_kinds(count)))
    out = run(beton, path, "strict" if checksums and count else "lax")
    assert out.endswith(" 0 changed\n"), out


@pytest.mark.parametrize("kinds", [("int",), ("float", "int")])
def test_damaged_files_without_data(beton, tmp_path, kinds):
    fields = [(kind, f"f{i}", None) for i, kind in enumerate(kinds)]
    samples = files.random_samples(np.random.default_rng(2), fields, 4)
    for checksums in (False, True):
        path = tmp_path / f"{checksums}.beton"
        writer = DatasetWriter(path, files.package_fields(fields), num_workers=1, checksums=checksums)
        writer.from_indexed_dataset(files.package_samples(fields, samples))
        run(beton, path, "strict" if checksums else "lax")


def test_damaged_file_with_an_unsorted_table(beton, tmp_path):
    data = bytearray(model.write(ALL_KINDS, all_kinds(3), 2048))
    table = int.from_bytes(data[16:24], "little")
    entries = np.frombuffer(bytes(data[table:]), "<u8").reshape(-1, 3)
    data[table:] = np.random.default_rng(3).permutation(entries).tobytes()
    (tmp_path / "x.beton").write_bytes(data)
    run(beton, tmp_path / "x.beton", "lax")


def test_damaged_file_of_ffcv_with_entries_of_size_zero(beton, tmp_path):
    golden = ROOT / "tests/golden/bytes_empty.beton.xz"
    (tmp_path / "x.beton").write_bytes(lzma.decompress(golden.read_bytes()))
    run(beton, tmp_path / "x.beton", "lax")


@pytest.fixture
def libjpeg():
    if not _cgxffcv.build_info()["jpeg"]:
        pytest.skip("this build has no libjpeg-turbo")


def test_damaged_jpeg_streams(tmp_path, libjpeg, build):
    image = pytest.importorskip("PIL.Image")
    rng = np.random.default_rng(4)
    pixels = np.repeat(np.repeat(rng.integers(0, 256, (3, 4, 3), np.uint8), 8, 0), 8, 1)
    picture = image.fromarray(pixels)
    picture.save(tmp_path / "baseline.jpg", quality=60)
    picture.save(tmp_path / "progressive.jpg", quality=60, progressive=True)
    picture.convert("L").save(tmp_path / "grey.jpg", quality=60)
    picture.save(tmp_path / "full.jpg", quality=60, subsampling=0)
    out = run(build("jpeg"), *sorted(tmp_path.glob("*.jpg")))
    assert "decoded" in out


@pytest.mark.parametrize("target", TARGETS)
def test_corpus_and_mutations(target, libjpeg, build):
    """A sanitizer's finding, or a target whose own check fails, ends the program with an error."""
    corpus = HERE / "corpus" / target
    out = run(build(f"fuzz_{target}", "replay.c", "map.c"), corpus, TARGETS[target])
    assert out == f"{len(list(corpus.iterdir())) * (1 + TARGETS[target])} executions\n"


@pytest.mark.parametrize("target", PYTHON_TARGETS)
def test_corpus_and_mutations_in_python(target):
    corpus, mutations = HERE / "corpus" / target, PYTHON_TARGETS[target]
    done = run_python(HERE / "fuzz_python.py", "--replay", target, corpus, mutations, limit=300)
    assert done.stdout == f"{len(list(corpus.iterdir())) * (1 + mutations)} executions\n"
