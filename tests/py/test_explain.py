"""What loaders, readers and `info` show: stages, bytes, contact sheets."""

import base64
import html
import io
import re

import numpy as np
import pytest
import tiny_beton

from cgxffcv import Reader, comm
from cgxffcv import transforms as tf
from cgxffcv.app import cli
from cgxffcv.errors import UserError
from cgxffcv.fields.decoders import BytesDecoder, IntDecoder, RandomResizedCropRGBImageDecoder
from cgxffcv.loader import Loader, OrderOption
from cgxffcv.sheet import GAP, contact_sheet, png, thumbnail

COUNT = 40


def images():
    random = np.random.default_rng(8)
    return [random.integers(0, 256, (20 + i % 7, 31, 3), dtype=np.uint8) for i in range(COUNT)]


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    fields = {"image": ("image", images()), "label": ("int", list(range(COUNT))), "text": ("bytes", [b"ab"] * COUNT)}
    return tiny_beton.write(tmp_path_factory.mktemp("explain") / "a.beton", fields)


def test_explain(path):
    def halve(batch):
        return batch / 2

    pipelines = {
        "image": [
            RandomResizedCropRGBImageDecoder((8, 6)),
            tf.RandomHorizontalFlip(),
            tf.Convert("float32"),
            tf.ToTorchImage(False),
            halve,
        ],
        "label": [IntDecoder(), tf.LabelMixup(1, True), tf.MixupToOneHot(50)],
        "text": [BytesDecoder(lengths=True)],
    }
    with Loader(path, 16, 2, order=OrderOption.RANDOM, pipelines=pipelines, seed=7, batches_ahead=2) as loader:
        before = loader.explain().splitlines()
        assert "40 samples in use, batches of 16, order RANDOM, seed 7" in before[0]
        assert before[1].strip() == "image: float32 (3, 8, 6), 576 B per sample"
        order = ["RandomResizedCropRGBImageDecoder", "RandomHorizontalFlip", "Convert", "ToTorchImage"]
        assert re.search(" > ".join(f"{name}.*" for name in order), before[2]) and "halve" not in before[2]
        assert before[3].strip() == "each batch, in the thread that iterates: halve"
        assert "LabelMixup" in before[5] and "MixupToOneHot" in before[6]
        assert [line.split(":")[0].strip() for line in before[7:9]] == ["text", "text"]
        assert "2 workers, 2 batches ahead" in before[-3]
        for _ in loader:
            assert re.search(r"\d buffers? of .* for batches", loader.explain())
        assert "<pre>" in loader._repr_html_() and "image/png" in loader._repr_html_()
    assert "image/png" not in loader._repr_html_()  # closed
    with pytest.raises(ValueError, match="closed"):
        loader.explain()


def test_png_is_read_by_others():
    image_module = pytest.importorskip("PIL.Image")
    image = images()[3]
    with image_module.open(io.BytesIO(png(image))) as opened:
        np.testing.assert_array_equal(np.asarray(opened), image)


def test_contact_sheet(path):
    with Reader(path) as reader:
        sheet = contact_sheet(reader, count=9, side=16)
    assert sheet.shape == (3 * (16 + GAP), 3 * (16 + GAP), 3)
    for place in range(9):
        small = thumbnail(images()[place * COUNT // 9], 16)
        assert max(small.shape[:2]) == 16
        y, x = place // 3 * (16 + GAP), place % 3 * (16 + GAP)
        np.testing.assert_array_equal(sheet[y : y + small.shape[0], x : x + 16], small)
    assert thumbnail(images()[0], 99) is not None and thumbnail(images()[0], 99).shape == images()[0].shape


def test_a_sheet_of_tiny_images_has_tiny_cells_and_is_shown_larger(path):
    with Reader(path) as reader:
        sheet = contact_sheet(reader, count=16)
        assert sheet.shape == (4 * (31 + GAP), 4 * (31 + GAP), 3)
        assert f'width="{3 * sheet.shape[1]}"' in reader._repr_html_()


def test_what_notebooks_show(path):
    with Reader(path) as reader:
        shown = reader._repr_html_()
        assert "40 samples" in shown and "image 31 x 20 to 26 pixels (width x height)" in shown
        assert ">int</td>" in shown
        coded = re.search(r"base64,([^\"]+)", shown).group(1)
        assert base64.b64decode(coded) == png(contact_sheet(reader, count=16))
    assert "base64" not in reader._repr_html_()


def test_what_notebooks_show_of_several_files(path):
    with Loader([path, path], 8, pipelines={"image": None}) as loader:
        reader = loader.reader
        shown = reader._repr_html_()
    assert (
        "(and 1 more): 80 samples" in shown
        and "image 31 x 20 to 26 pixels (width x height)" in shown
        and "base64" in shown
    )
    assert "base64" not in reader._repr_html_()


def test_notebooks_show_an_explanation_line_by_line(path):
    with Loader(path, 8, pipelines={"image": None}) as loader:
        shown = loader.explain()._repr_html_()
    assert shown.startswith("<pre>") and shown.count("\n") > 3 and "each sample, in a worker: " in shown
    with comm.world() as world:
        plan = world.allreduce_plans(np.zeros(5000, np.float32), bits=4)[0]
        assert plan.explain()._repr_html_() == f"<pre>{html.escape(str(plan.explain()))}</pre>"


def test_thumbnails_of_info(path, tmp_path, capsys):
    assert cli.run(["info", str(path), "--thumbnails", str(tmp_path / "sheet.png")]) == 0
    assert "40 samples" in capsys.readouterr().out
    with Reader(path) as reader:
        assert (tmp_path / "sheet.png").read_bytes() == png(contact_sheet(reader))
    plain = tiny_beton.write(tmp_path / "plain.beton", {"label": ("int", [1, 2])})
    with pytest.raises(UserError, match="no field holds images"):
        cli.run(["info", str(plain), "--thumbnails", str(tmp_path / "none.png")])
    assert not (tmp_path / "none.png").exists()
    with Reader(plain) as reader:
        assert "base64" not in reader._repr_html_()
