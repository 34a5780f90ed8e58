"""A trained network from its checkpoint alone: in Python, and `cgxffcv predict`."""

import json
import os
import shutil
import sys

import _cgxffcv
import numpy as np
import pytest
import small_data
from trainings import finish

from cgxffcv import checkpoint, cifar, nn, recipes
from cgxffcv.app import cli
from cgxffcv.app.commands import predict
from cgxffcv.app.image_folder import Squares
from cgxffcv.checkpoint import CheckpointError
from cgxffcv.classes import write_names
from cgxffcv.errors import DataError, UserError
from cgxffcv.fields import IntField
from cgxffcv.train import Trainer
from cgxffcv.writer import DatasetWriter

pytestmark = pytest.mark.skipif(not _cgxffcv.build_info()["onednn"], reason="networks need oneDNN (see cgxffcv doctor)")

SMALL = {"widths": (16, 16, 16), "batch_size": 50, "epochs": 2, "whiten_images": 100}
RECIPES = {
    "six views": recipes.get("airbench94").replace(**SMALL, lr=0.1, head_scale=1 / 16),
    "averaging": recipes.get("airbench93").replace(**SMALL, lr=250.0),
    "deep": recipes.get("airbench90").replace(
        **SMALL, lr=0.1, depths=(2, 3, 3), head_scale=1 / 16, hardest=(), test_share=1.0
    ),
    "resnet9": recipes.get("resnet9").replace(batch_size=25, epochs=0.3, lr=0.05),
    "resnet18": recipes.get("resnet18").replace(widths=(8, 16, 16, 24), batch_size=50, epochs=1, lr=0.1),
}


@pytest.fixture(scope="module", params=RECIPES)
def trained(request, tmp_path_factory):
    """(checkpoint, test images, labels, the trainer's tests with all views and with the plain one)."""
    folder = tmp_path_factory.mktemp("trained")
    files = small_data.make(folder)
    path = folder / "best.safetensors"
    with Trainer(
        RECIPES[request.param], *files, threads=2, num_workers=1, device="cpu", precision="float32"
    ) as trainer:
        finish(trainer)
        tests = trainer.evaluate(), trainer.evaluate(tta=False)
        trainer.save(path, best=True)
    return path, *small_data.images_and_labels(103, 1), tests


def entropy(probabilities, labels):
    return float(-np.log(probabilities[np.arange(len(labels)), labels].astype(np.float64)).mean())


def test_it_says_what_the_trainers_test_found(trained):
    path, images, labels, tests = trained
    network = nn.load(path, precision="float32", threads=1)
    for tta, test in zip((True, False), tests, strict=True):
        classes, probabilities = network.predict(images, tta=tta), network.probabilities(images, tta=tta)
        assert (classes.dtype, classes.shape) == (np.int64, (103,))
        assert (probabilities.dtype, probabilities.shape) == (np.float32, (103, 10))
        assert (classes == labels).sum() == test.correct and (probabilities.argmax(1) == classes).all()
        np.testing.assert_allclose(probabilities.sum(1), 1, rtol=1e-6)
        assert entropy(probabilities, labels) == pytest.approx(test.loss, rel=1e-5)
    logits = network.logits(images)
    soft = np.exp(logits - logits.max(1, keepdims=True))
    np.testing.assert_allclose(network.probabilities(images), soft / soft.sum(1, keepdims=True), rtol=1e-4, atol=1e-7)


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    """(checkpoint, what load gives) of a network that has learned nothing yet."""
    folder = tmp_path_factory.mktemp("network")
    train, _ = small_data.make(folder)
    with Trainer(RECIPES["six views"], train, threads=1, num_workers=1, device="cpu") as trainer:
        trainer.save(folder / "a.safetensors")
    return folder / "a.safetensors", nn.load(folder / "a.safetensors", precision="float32")


def test_any_number_of_images_and_any_strides(network):
    images, _ = small_data.images_and_labels(1103, 2)
    whole = network[1].logits(images)
    assert whole.shape == (1103, 10) and network[1].predict(images[:0]).shape == (0,)
    np.testing.assert_allclose(network[1].logits(images[7:8])[0], whole[7], rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(network[1].logits(images[::2]), network[1].logits(images[::2].copy()))
    np.testing.assert_array_equal(network[1].predict(images[:3].tolist() and images[:3]), whole[:3].argmax(1))
    assert network[1].classes == cifar.CLASSES and "airbench94" in repr(network[1])


@pytest.mark.parametrize(
    "change, kind, match",
    [
        (lambda x: x.astype(np.float32) / 255, TypeError, "images are float32; expected uint8 from 0 to 255"),
        (lambda x: x.astype(np.int64), TypeError, "images are int64"),
        (lambda x: x[0], ValueError, r"the shape \(32, 32, 3\); expected \(n, 32, 32, 3\): images\[None\] makes"),
        (lambda x: np.moveaxis(x, 3, 1), ValueError, r"np.moveaxis\(images, 1, -1\) turns NCHW into NHWC"),
        (lambda x: x[:, :28, :28], ValueError, "resize them to 32 x 32"),
        (lambda x: x[..., :1], ValueError, "three colours last"),
        (lambda x: x[..., 0], ValueError, "three colours last"),
    ],
)
def test_images_that_cannot_be(network, change, kind, match):
    with pytest.raises(kind, match=match):
        network[1].predict(change(small_data.images_and_labels(4)[0]))


@pytest.mark.parametrize(
    "change, match",
    [
        ({"recipe": None}, "no 'recipe' in it"),
        ({"recipe": {"name": "x", "summary": "", "speed": 1}}, "speed"),
        ({"recipe": RECIPES["six views"].as_dict() | {"widths": [10**6] * 3}}, r"b1.conv1.weight has the shape \(16"),
        ({"recipe": RECIPES["resnet9"].as_dict()}, "conv1.weight is missing"),
        ({"b2.conv2.weight": None}, "b2.conv2.weight is missing"),
        ({"b2.norm1.running_mean": None}, "b2.norm1.running_mean is missing"),
        ({"head.weight": np.zeros((10, 15), np.float32)}, r"head.weight has the shape \(10, 15\)"),
        ({"b1.conv1.weight": np.zeros((16, 3, 3, 24), np.float64)}, "float64; expected .* float32"),
    ],
)
def test_checkpoints_that_hold_no_network(network, tmp_path, change, match):
    state = checkpoint.load(network[0]) | change
    checkpoint.save(tmp_path / "b.safetensors", {name: value for name, value in state.items() if value is not None})
    with pytest.raises(CheckpointError, match=f"b.safetensors: not the checkpoint of a trained network: .*{match}"):
        nn.load(tmp_path / "b.safetensors")


def test_a_network_that_has_diverged_is_no_answer(network, tmp_path):
    state = checkpoint.load(network[0])
    state["head.weight"][3, 4] = np.nan
    checkpoint.save(tmp_path / "nan.safetensors", state)
    with pytest.raises(
        CheckpointError, match=r"nan.safetensors gives outputs that are not finite: its training has diverged"
    ):
        nn.load(tmp_path / "nan.safetensors").predict(small_data.images_and_labels(4)[0])
    with pytest.raises(FileNotFoundError):
        nn.load(tmp_path / "none.safetensors")


# --- the command ---------------------------------------------------------------------------------------------------


def said(capsys, *words):
    assert cli.run(["predict", *map(str, words)]) == 0
    return capsys.readouterr().out.splitlines()


def test_files_of_every_kind(network, tmp_path, capsys):
    image_module = pytest.importorskip("PIL.Image", reason="Pillow is not installed")
    images, labels = small_data.images_and_labels(20, 5)
    classes, expected = network[1].predict(images), network[1].probabilities(images)
    names = [cifar.CLASSES[number] for number in classes]
    image_module.fromarray(images[0]).save(tmp_path / "a.png")
    np.save(tmp_path / "one.npy", images[1])
    np.save(tmp_path / "many.npy", images[:3])
    beton = small_data.write(tmp_path / "set.beton", images, labels)
    lines = said(capsys, network[0], *(tmp_path / name for name in ("a.png", "one.npy", "many.npy")), beton)
    assert [line.rpartition(":")[0] for line in lines[:5]] == [
        f"{tmp_path}/{name}" for name in ("a.png", "one.npy", "many.npy[0]", "many.npy[1]", "many.npy[2]")
    ]
    for line, number in zip(lines, [0, 1, 0, 1, 2, *range(20)], strict=False):
        name, percent = line.rpartition(": ")[2].split()
        assert name == names[number] and float(percent[:-1]) == pytest.approx(100 * expected[number].max(), abs=0.5)
    right = int((classes == labels).sum())
    assert len(lines) == 26 and lines[-1] == f"{beton}: {right} of 20 labels right ({right / 20:.2%}, mean of 6 views)"
    assert said(capsys, network[0], beton, "--plain")[-1].endswith(", plain view)")
    assert said(capsys, network[0], tmp_path / "one.npy", "--top", "3")[0].count("%") == 3


def test_json_jpeg_and_the_folder_of_a_run(network, tmp_path, capsys):
    images, labels = small_data.images_and_labels(2, 5)
    shutil.copy(network[0], tmp_path / "best.safetensors")
    (tmp_path / "a.jpg").write_bytes(_cgxffcv.jpeg_encode(images[0], 95))
    found = [json.loads(line) for line in said(capsys, tmp_path, tmp_path / "a.jpg", "--json", "--plain")]
    expected = network[1].probabilities(_cgxffcv.jpeg_decode((tmp_path / "a.jpg").read_bytes())[None], tta=False)[0]
    assert found[0]["number"] == expected.argmax() and found[0]["class"] == cifar.CLASSES[expected.argmax()]
    assert list(found[0]["probabilities"]) == list(cifar.CLASSES)
    np.testing.assert_allclose(list(found[0]["probabilities"].values()), expected, atol=0.05)
    beton = small_data.write(tmp_path / "b.beton", images, labels)
    found = [json.loads(line) for line in said(capsys, tmp_path, beton, "--json")]
    assert found[-1]["images"] == 2 and found[-1]["accuracy"] == found[-1]["correct"] / 2


def test_pictures_of_other_sizes(network, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "PIL", None)
    random = np.random.default_rng(6)
    inner = small_data.images_and_labels(1, 5)[0][0].repeat(4, axis=0).repeat(4, axis=1)
    wide = np.pad(inner, ((0, 0), (16, 16), (0, 0)))
    (tmp_path / "w.jpg").write_bytes(_cgxffcv.jpeg_encode(wide, 95))
    (tmp_path / "i.jpg").write_bytes(_cgxffcv.jpeg_encode(inner, 95))
    with pytest.raises(UserError, match=r"w.jpg: 160 x 128 pixels, but the network takes 32 x 32; --resize takes the"):
        said(capsys, network[0], tmp_path / "w.jpg")
    lines = said(capsys, network[0], tmp_path / "w.jpg", tmp_path / "i.jpg", "--resize")
    assert lines[0].split(": ")[1].split()[0] == lines[1].split(": ")[1].split()[0]  # the borders are cut off
    small, large = random.integers(0, 256, (21, 27, 3), np.uint8), random.integers(0, 256, (50, 40, 3), np.uint8)
    for pixels in (small, large):
        (tmp_path / "x.jpg").write_bytes(_cgxffcv.jpeg_encode(pixels, 95))
        np.save(tmp_path / "x.npy", Squares([tmp_path / "x.jpg"], [0], 32)[0][0])  # what a training on it sees
        lines = said(capsys, network[0], tmp_path / "x.jpg", tmp_path / "x.npy", "--resize", "--json")
        resized, seen = (json.loads(line)["probabilities"] for line in lines)
        assert resized == seen


def npy(path, count, order="C"):
    np.save(path, np.zeros((count, 32, 32, 3), np.uint8, order))
    return path


@pytest.mark.parametrize(
    "make, match",
    [
        (lambda p: np.save(p / "x.npy", np.zeros((3, 32, 32), np.uint8)), r"x.npy: uint8 of the shape \(3, 32, 32\)"),
        (lambda p: np.save(p / "x.npy", np.zeros((2, 32, 32, 3))), r"float64 .*; expected uint8 and \(32, 32, 3\), or"),
        (lambda p: np.save(p / "x.npy", np.zeros((0, 32, 32, 3), np.uint8)), r"the shape \(0, 32, 32, 3\)"),
        (lambda p: (p / "x.npy").write_bytes(b"nothing"), "x.npy: not a readable .npy file"),
        (lambda p: np.save(p / "x.npy", np.array([{}]), allow_pickle=True), "not a readable .npy file"),
        (lambda p: os.truncate(npy(p / "x.npy", 3), 5000), "x.npy: .* says 3 images, but it ends before"),
        (lambda p: npy(p / "x.npy", 2, order="F"), "x.npy: .* Fortran"),
        (lambda p: (p / "x.npy").write_bytes(b"\x93NUMPY\x09\x00"), "x.npy: not a readable .npy file"),
        (lambda p: (p / "x.png").write_bytes(b"nothing"), "x.png: "),
        (
            lambda p: DatasetWriter(p / "x.beton", {"n": IntField()}, num_workers=1).from_arrays(n=np.arange(3)),
            'a field "image"',
        ),
        (lambda p: small_data.write(p / "x.beton", *(a[:0] for a in small_data.images_and_labels(3))), "no images"),
        (
            lambda p: small_data.write(
                p / "x.beton", small_data.images_and_labels(3)[0][:, :8, :8].copy(), np.arange(3)
            ),
            r"x.beton\[0\]: uint8 of the shape \(8, 8, 3\)",
        ),
    ],
)
def test_files_that_cannot_be(network, tmp_path, capsys, make, match):
    make(tmp_path)
    with pytest.raises(UserError, match=match):
        said(capsys, network[0], next(tmp_path.glob("x.*")))


def test_a_pipe_is_no_npy_file(network, tmp_path, capsys):
    os.mkfifo(tmp_path / "x.npy")
    with pytest.raises(OSError, match="not a regular file"):
        said(capsys, network[0], tmp_path / "x.npy")


def test_a_npy_file_that_is_cut_meanwhile(network, tmp_path, capsys, monkeypatch):
    """It is an error, whereas a mapping of it would end the process."""
    path = npy(tmp_path / "x.npy", 200)  # more than any Python reads ahead
    monkeypatch.setattr(predict, "BATCH", 2)
    found = predict._from_npy(str(path), 32)
    assert len(next(found)[0]) == 2
    os.truncate(path, 128 + 2 * 32 * 32 * 3)
    with pytest.raises(UserError, match="says 200 images, but it ends before"):
        list(found)


def test_labels_that_mean_other_classes_than_the_networks_are_not_counted(network, tmp_path, capsys):
    state = checkpoint.load(network[0]) | {"classes": [f"kind {number}" for number in range(10)]}
    checkpoint.save(tmp_path / "own.safetensors", state)
    beton = small_data.write(tmp_path / "set.beton", *small_data.images_and_labels(20, 5))
    write_names(beton, [f"kind {number}" for number in range(10)])
    assert len(said(capsys, tmp_path / "own.safetensors", beton)) == 21
    write_names(beton, ["another", *(f"kind {number}" for number in range(9))])
    with pytest.raises(DataError, match=r"set.beton.classes: class 0 is 'another', but 'kind 0' in .*own.safetensors"):
        said(capsys, tmp_path / "own.safetensors", beton)
    assert len(said(capsys, network[0], beton)) == 21  # this file has no names of classes


@pytest.mark.parametrize("label", [-1, 10])
def test_labels_that_no_class_has_are_not_compared(network, tmp_path, capsys, label):
    images, labels = small_data.images_and_labels(20, 5)
    labels[7] = label
    beton = small_data.write(tmp_path / "set.beton", images, labels)
    for words in ([], ["--json"]):
        assert cli.run(["predict", str(network[0]), str(beton), *words]) == 0
        shown = capsys.readouterr()
        assert len(shown.out.splitlines()) == 20
        assert "set.beton: labels from" in shown.err and "the network has classes 0 to 9: not compared" in shown.err


def test_files_that_are_not_there(network, tmp_path, capsys):
    for name in ("none.png", "none.npy", "none.beton"):
        with pytest.raises(FileNotFoundError):
            said(capsys, network[0], tmp_path / name)
    with pytest.raises(FileNotFoundError):
        said(capsys, tmp_path / "none.safetensors", tmp_path / "none.png")
    with pytest.raises(UserError, match="a folder; name the pictures in it"):
        said(capsys, network[0], tmp_path)
