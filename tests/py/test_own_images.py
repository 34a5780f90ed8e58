"""Images of one's own: recipes that fit them, a folder that becomes .beton files, trainings, and what is refused."""

import errno
import fcntl
import io
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import _cgxffcv
import numpy as np
import pytest
from PIL import Image
from trainings import finish, same_state

from cgxffcv import checkpoint, nn, recipes
from cgxffcv.app import cli, config, image_folder, session
from cgxffcv.classes import names_file, read_names, write_names
from cgxffcv.errors import ConfigError, DataError
from cgxffcv.fields import FloatField, IntField, RGBImageField
from cgxffcv.reader import Reader
from cgxffcv.recipes import RecipeError
from cgxffcv.train import ImageFacts, Trainer, fitted, look_at, make_plan
from cgxffcv.writer import DatasetWriter

trains = pytest.mark.skipif(not _cgxffcv.build_info()["onednn"], reason="networks need oneDNN (see cgxffcv doctor)")
NAMES = ("ant", "bee", "cow")


def pictures(count, side, classes, seed=0, grey=False):
    """uint8 (count, side, side, 3), a smooth pattern for each class with noise, and their labels."""
    draws = np.random.default_rng(seed)
    cell = -(-side // 4)
    patterns = np.random.default_rng(7).uniform(40, 215, (classes, 4, 4, 1 if grey else 3))
    large = patterns.repeat(cell, axis=1).repeat(cell, axis=2)[:, :side, :side]
    labels = np.arange(count) % classes
    noisy = large[labels] + draws.normal(0, 25, (count, side, side, 1 if grey else 3))
    return np.clip(noisy, 0, 255).astype(np.uint8).repeat(3 if grey else 1, axis=3), labels


def write(path, images, labels, image="image", label="label", **more):
    fields = {image: RGBImageField(), label: IntField(), **dict.fromkeys(more, FloatField())}
    DatasetWriter(path, fields, num_workers=1).from_arrays(**{image: images, label: labels}, **more)
    return str(path)


@pytest.fixture
def folder(tmp_path):
    """FOLDER/CLASS/IMAGE: 8 PNG images of 24 x 20 pixels in each of three classes."""
    images, labels = pictures(24, 24, 3)
    for number, (image, label) in enumerate(zip(images, labels, strict=True)):
        place = tmp_path / "pictures" / NAMES[label]
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image[:20]).save(place / f"{number:02}.png")
    return tmp_path / "pictures"


def settings(folder, *options):
    root = f"--data.root={folder.parent / 'data'}"
    words = ["--data.source=folder", f"--data.folder={folder}", root, "--data.num_workers=1", *options]
    return config.load(words, environ={})


def prepare(folder, *options):
    """The configuration with its two files, and the output."""
    said = []
    c = settings(folder, *options)
    image_folder.prepare(c, said.append)
    return c, "\n".join(said)


# ---- recipes ----


def test_a_recipe_keeps_its_shares_of_the_image():
    recipe = recipes.get("airbench90").fitted(96, 17, (10.0, 20.5, 30.4), (1.0, 2.0, 3.0))
    assert (recipe.side, recipe.classes) == (96, 17)
    assert recipe.resolutions == ((0.0, 48), (0.3, 72), (0.7, 96)) and recipe.translate == 3
    assert recipe.mean == (10.0, 20.5, 30.4) and recipe.std == (1.0, 2.0, 3.0)
    small = recipes.get("airbench90").fitted(20, 2)
    assert small.resolutions == ((0.0, 16), (0.7, 20)) and small.translate == 1
    ffcv = recipes.get("ffcv").fitted(64, 3, (10.0, 20.5, 30.6))
    assert ffcv.translate_fill == ffcv.cutout_fill == (10, 20, 31) and (ffcv.translate, ffcv.cutout) == (4, 8)
    assert recipes.get("demo").fitted(64, 3, (9.0, 9.0, 9.0)).translate_fill == (0, 0, 0)


def test_views_grow_with_the_image_and_are_mirrored_only_where_training_is():
    recipe = recipes.get("airbench94")
    assert recipe.views[0] == (0, 0, False, 0.25) and recipe.views[2] == (-1, -1, False, 0.125)
    assert recipe.fitted(96, 10).views[2] == (-3, -3, False, 0.125)
    upright = recipe.replace(flip="none").views
    assert [(view.dy, view.mirror, view.weight) for view in upright] == [
        (0, False, 0.5),
        (-1, False, 0.25),
        (1, False, 0.25),
    ]


@pytest.mark.parametrize(
    ("side", "classes", "wanted"),
    [
        (32, 1, "classes = 1: expected a whole number from 2 to 1,000"),
        (32, 1001, "from 2 to 1,000"),
        (15, 10, "side = 15: expected a whole number from 16 to 96"),
        (97, 10, "from 16 to 96"),
    ],
)
def test_limits_of_recipes(side, classes, wanted):
    with pytest.raises(RecipeError, match=wanted):
        recipes.get("resnet9").fitted(side, classes)
    with pytest.raises(RecipeError, match=wanted):
        recipes.get("resnet18").fitted(side, classes)


@pytest.mark.parametrize(
    ("samples", "options", "kept"),
    [
        (40, "", ((0.12, 0.7), (0.4, 0.4))),
        (39, "", ((0.12, 0.7),)),
        (22, "", ()),
        (22, "--training.batch_size=8", ((0.12, 0.7), (0.4, 0.4))),
    ],
)
def test_no_pass_of_a_small_set_is_less_than_a_batch(samples, options, kept):
    facts = ImageFacts(samples, 16, 2, ("a", "b"), (1.0, 1.0, 1.0), (1.0, 1.0, 1.0))
    said = []
    words = ["--training.recipe=airbench90", *options.split()]
    recipe = session.choose_recipe(config.load(words, environ={}), said.append, facts)
    assert recipe.hardest == kept and ("no pass takes" in "".join(said)) == (len(kept) < 2)
    make_plan(recipe, samples, 1)


def test_the_head_and_what_feeds_it_grow_with_the_classes():
    wide = {n: nn.resnet9(n).nodes[-3].channels for n in (2, 128, 129, 200, 1000)}
    assert wide == {2: 128, 128: 128, 129: 192, 200: 256, 1000: 512}
    assert nn.resnet9(1000).nodes[-1].classes == 1000


# ---- facts of files ----


def test_facts_of_a_file(tmp_path):
    images, labels = pictures(60, 40, 4)
    path = write(tmp_path / "own.beton", images, labels, "picture", "kind", weight=np.zeros(60))
    facts = look_at(path)
    assert (facts.samples, facts.side, facts.classes, facts.names) == (60, 40, 4, None)
    assert facts.mean == pytest.approx(images.reshape(-1, 3).mean(axis=0), abs=1e-3)
    assert facts.std == pytest.approx(images.reshape(-1, 3).std(axis=0), abs=1e-3)
    write_names(path, ["a", "b", "c", "d", "e"])
    assert look_at(path).classes == 5 and look_at(path).names == ("a", "b", "c", "d", "e")
    assert fitted("airbench94", path).classes == 5


def test_cifar_stays_as_it_is(tmp_path):
    path = write(tmp_path / "a.beton", *pictures(20, 32, 10))
    assert fitted("airbench94", path) == recipes.get("airbench94")


def refusals(tmp_path):
    images, labels = pictures(12, 16, 3)
    wide = np.zeros((12, 16, 20, 3), np.uint8)
    yield images, labels * 0, "all 12 training images are of one class"
    yield images[:1], labels[:1], "1 training images; expected at least 2"
    yield images, labels - 1, "a label is -1"
    yield images, labels * 900, "at most 1,000 classes"
    yield wide, labels, "images of 20 x 16 pixels; expected squares of one size, with sides of 16 to 96"
    yield pictures(12, 8, 3)[0], labels, "images of 8 x 8"
    yield pictures(12, 97, 3)[0], labels, "images of 97 x 97"


def test_files_that_cannot_be_trained_on(tmp_path):
    for number, (images, labels, wanted) in enumerate(refusals(tmp_path)):
        with pytest.raises(DataError, match=wanted):
            look_at(write(tmp_path / f"{number}.beton", images, labels))


def test_fields_that_are_not_clear(tmp_path):
    images, labels = pictures(12, 16, 3)
    fields = {"image": RGBImageField(), "a": IntField(), "b": IntField()}
    DatasetWriter(tmp_path / "x.beton", fields, num_workers=1).from_arrays(image=images, a=labels, b=labels)
    with pytest.raises(DataError, match="a field 'label' of whole numbers; a and b are several"):
        look_at(tmp_path / "x.beton")


def test_names_that_are_none(tmp_path):
    path = write(tmp_path / "x.beton", *pictures(12, 16, 3))
    for text, wanted in (
        (b"a\nb\n", "names 2 classes, but there is a label 2"),
        (b"a\nb\na\n", "a duplicate"),
        (b"a\n\nc\n", "not a name"),
        (b"\xff\n", "UTF-8"),
    ):
        (tmp_path / "x.beton.classes").write_bytes(text)
        with pytest.raises(DataError, match=wanted):
            look_at(path)
    write_names(path, ["new\nline", b"\xff".decode("utf-8", "surrogateescape"), "c"])
    assert read_names(path) == ("new?line", "\\udcff", "c")


# ---- a folder ----


def test_squares_are_means_of_areas():
    image = np.random.default_rng(0).integers(0, 256, (48, 80, 3)).astype(np.uint8)
    middle = image[:, 16:64].astype(np.float64)
    expected = middle.reshape(16, 3, 16, 3, 3).mean(axis=(1, 3))
    assert np.abs(image_folder.square(image, 16) - expected).max() <= 0.5 + 1e-9
    assert np.array_equal(image_folder.square(image[:8, :8], 16), image[:8, :8].repeat(2, axis=0).repeat(2, axis=1))


def test_a_split_takes_a_share_of_each_class():
    labels = [0] * 10 + [1] * 40 + [2]
    chosen = image_folder.split(labels, 0.2, 3)
    assert [int(chosen[np.array(labels) == label].sum()) for label in range(3)] == [2, 8, 0]
    assert np.array_equal(chosen, image_folder.split(labels, 0.2, 3))
    assert not np.array_equal(chosen, image_folder.split(labels, 0.2, 4))


def test_a_folder_becomes_two_files_once(folder):
    (folder / "ant" / "notes.txt").write_text("x")
    (folder / "ant" / ".DS_Store").write_text("x")
    c, said = prepare(folder, "--data.side=16", "--data.val_share=0.25")
    assert "3 classes, 18 images for training and 6 for the test" in said and "notes.txt" in said
    assert ".DS_Store" not in said and c.origin("data.train_dataset") == f"made of {folder}"
    seen = {}
    for path in (c.data.train_dataset, c.data.val_dataset):
        assert read_names(path) == NAMES
        with Reader(path) as file:
            seen |= {file.value(i, "image").tobytes(): label for i, label in enumerate(file.column("label"))}
    expected = {}
    for label, name in enumerate(NAMES):
        for image in (folder / name).glob("*.png"):
            expected[image_folder.square(np.asarray(Image.open(image)), 16).tobytes()] = label
    assert seen == expected
    before = os.stat(c.data.train_dataset)
    again, said = prepare(folder, "--data.side=16", "--data.val_share=0.25")
    assert said == "" and os.stat(again.data.train_dataset).st_mtime_ns == before.st_mtime_ns
    (folder / "ant" / "00.png").write_bytes((folder / "bee" / "01.png").read_bytes())
    assert prepare(folder, "--data.side=16", "--data.val_share=0.25")[0].data.train_dataset != c.data.train_dataset


def test_files_that_went_are_made_again(folder):
    c, _ = prepare(folder)
    made = [c.data.train_dataset, c.data.val_dataset]
    for path in [*made, *map(names_file, made)]:
        os.unlink(path)
        assert "3 classes" in prepare(folder)[1] and os.path.isfile(path)


HOLDER = """
import fcntl, os, signal, sys
file = open(sys.argv[1], "w")
fcntl.flock(file, fcntl.LOCK_EX)
print(os.getpid(), file=file, end="", flush=True)
print("held", flush=True)
os.kill(os.getpid(), signal.SIGSTOP) if sys.argv[2] == "stopped" else sys.stdin.read()
"""


@pytest.mark.parametrize("how", ["stopped", "busy"])
def test_files_that_another_process_makes(folder, how, monkeypatch):
    """It is named, and waited for, but not for ever if it makes no progress."""
    made = os.path.dirname(prepare(folder)[0].data.train_dataset)
    monkeypatch.setattr(image_folder, "NOTICE_SECONDS", 0.1)
    monkeypatch.setattr(image_folder, "STOPPED_SECONDS", 0.5)
    command = [sys.executable, "-c", HOLDER, os.path.join(made, ".lock"), how]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout.readline() == "held\n"
        try:
            if how == "stopped":
                with pytest.raises(DataError, match=f"process {holder.pid}, .* is stopped .*kill -CONT {holder.pid}"):
                    prepare(folder)
            else:
                threading.Timer(1, holder.stdin.close).start()
                assert f"another process ({holder.pid}) is making the files there; waiting for it" in prepare(folder)[1]
        finally:
            holder.kill()


def test_a_folder_that_its_maker_removes_is_made_again(folder, monkeypatch):
    """As after an error of the process that held the lock; the one that waits must not continue in the removed
    folder."""
    made = Path(prepare(folder)[0].data.train_dataset).parent
    monkeypatch.setattr(image_folder, "NOTICE_SECONDS", 0.1)
    with open(made / ".lock") as holder:
        fcntl.flock(holder, fcntl.LOCK_EX)

        def fail():
            shutil.rmtree(made)
            fcntl.flock(holder, fcntl.LOCK_UN)

        threading.Timer(1, fail).start()
        assert "3 classes" in prepare(folder)[1]
    assert sorted(os.listdir(made))[0] == ".lock" and (made / "test.beton").is_file()


def test_without_locks_a_failure_leaves_what_others_make(folder, monkeypatch):
    """If a file system has no locks, other processes may also be at work there."""
    made = Path(prepare(folder)[0].data.train_dataset).parent
    (made / "test.beton").unlink()

    def no_locks(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(image_folder, "_make", interrupted)
    with monkeypatch.context() as without:
        without.setattr(image_folder.fcntl, "flock", no_locks)
        with pytest.raises(KeyboardInterrupt):
            prepare(folder)
    assert (made / "train.beton").is_file()
    with pytest.raises(KeyboardInterrupt):
        prepare(folder)
    assert not made.exists()


def test_a_planted_link_is_no_lock(folder, tmp_path):
    made = os.path.dirname(prepare(folder)[0].data.train_dataset)
    os.remove(os.path.join(made, ".lock"))
    os.symlink(tmp_path / "theirs", os.path.join(made, ".lock"))
    with pytest.raises(DataError, match=re.escape(made)):
        prepare(folder)
    assert not (tmp_path / "theirs").exists()


def test_a_link_to_a_folder_is_named_and_one_to_nothing_is_a_bad_image(folder):
    (folder / "ant" / "more").symlink_to(folder / "bee")
    c, said = prepare(folder)
    assert (
        f"1 left out (files without an image suffix, images of no class, links to folders): {folder / 'ant' / 'more'}"
        in said
    )
    (folder / "ant" / "gone.png").symlink_to("nowhere.png")
    with pytest.raises(DataError, match=r"gone\.png.*--data.on_error=skip"):
        prepare(folder)
    c, said = prepare(folder, "--data.on_error=skip")
    assert "left out: " in said and "gone.png" in said
    with Reader(c.data.train_dataset) as train, Reader(c.data.val_dataset) as test:
        assert len(train) + len(test) == 24


def test_a_folder_that_cannot_be_read_is_not_passed_over(folder, monkeypatch):
    (folder / "bee" / "inner").mkdir()
    listed = os.scandir

    def scandir(path):
        if str(path).endswith("inner"):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return listed(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(DataError, match=r"inner: cannot be read: Permission denied \(data.folder, --data.folder\)"):
        prepare(folder)


def test_classes_that_would_have_one_name_in_a_file(folder):
    (folder / "ant").rename(folder / "c\nw")
    (folder / "bee").rename(folder / "c\tw")
    with pytest.raises(DataError, match=r"pictures \(data.folder, --data.folder\): class 1, 'c\?w', is a duplicate"):
        prepare(folder)
    with pytest.raises(DataError, match="a duplicate"):
        cli.run(["convert", str(folder), str(folder.parent / "x.beton"), "--workers=1"])
    assert not list(folder.parent.rglob("*.beton"))


def test_a_folder_for_the_test(folder, tmp_path):
    (tmp_path / "other" / "cow").mkdir(parents=True)
    Image.fromarray(pictures(1, 24, 3)[0][0]).save(tmp_path / "other" / "cow" / "x.png")
    c, said = prepare(folder, f"--data.val_folder={tmp_path / 'other'}")
    with Reader(c.data.val_dataset) as file:
        assert list(file.column("label")) == [2]
    assert "24 images for training and 1 for the test" in said
    (tmp_path / "other" / "gnu").mkdir()
    with pytest.raises(DataError, match="class 'gnu' .* is not among the training images' classes: ant, bee, cow"):
        prepare(folder, f"--data.val_folder={tmp_path / 'other'}")


def bad_images():
    """Name to (bytes, the message about them)."""
    pixels = Image.fromarray(pictures(1, 24, 3)[0][0])
    frames, png, huge = io.BytesIO(), io.BytesIO(), io.BytesIO()
    pixels.save(frames, "GIF", save_all=True, append_images=[pixels.rotate(90)])
    pixels.save(png, "PNG")
    Image.new("RGB", (3000, 3000)).save(huge, "PNG")
    return {
        "moving.gif": (frames.getvalue(), "2 pictures in one file"),
        "cut.png": (png.getvalue()[:200], "not a readable image"),
        "text.jpg": (b"not an image", "not a readable image"),
        "empty.jpeg": (b"", "not a readable image"),
        "huge.png": (huge.getvalue(), "over the limit of 1,000,000"),
    }


@pytest.fixture
def small_limit():
    before = _cgxffcv.max_image_pixels()
    _cgxffcv.set_max_image_pixels(1_000_000)
    yield
    _cgxffcv.set_max_image_pixels(before)


@pytest.mark.parametrize("name", bad_images())
def test_an_image_that_cannot_be_read_stops_or_is_left_out(folder, name, small_limit):
    data, wanted = bad_images()[name]
    (folder / "bee" / name).write_bytes(data)
    with pytest.raises(DataError, match=f"(?s){name}: .*{wanted}.*--data.on_error=skip"):
        prepare(folder)
    assert os.listdir(folder.parent / "data") == []
    c, said = prepare(folder, "--data.on_error=skip")
    assert f"{name}: " in said and wanted in said
    with Reader(c.data.train_dataset) as train, Reader(c.data.val_dataset) as test:
        assert len(train) + len(test) == 24


def test_a_class_of_which_nothing_can_be_read(folder):
    for image in (folder / "bee").iterdir():
        image.write_bytes(b"not an image")
    with pytest.raises(DataError, match="none of the images of class 'bee' can be read"):
        prepare(folder, "--data.on_error=skip")
    assert os.listdir(folder.parent / "data") == []
    for image in folder.rglob("*.png"):
        image.write_bytes(b"not an image")
    with pytest.raises(DataError, match="none of the images can be read"):
        prepare(folder, "--data.on_error=skip")


def test_what_was_left_out_is_taken_once_it_can_be_read(folder):
    def count():
        c, _ = prepare(folder, "--data.on_error=skip")
        with Reader(c.data.train_dataset) as train, Reader(c.data.val_dataset) as test:
            return len(train) + len(test)

    (folder / "bee" / "huge.png").write_bytes(bad_images()["huge.png"][0])
    before = _cgxffcv.max_image_pixels()
    try:
        _cgxffcv.set_max_image_pixels(1_000_000)
        assert count() == 24
    finally:
        _cgxffcv.set_max_image_pixels(before)
    assert count() == 25


def test_a_name_that_is_no_text_is_told(folder):
    with open(os.fsencode(folder / "ant") + b"/\xff.png", "wb") as file:
        file.write(b"not an image")
    with pytest.raises(DataError, match=r"udcff.png: .*not a readable image.*--data.on_error=skip"):
        prepare(folder)
    assert "udcff.png: not a readable image" in prepare(folder, "--data.on_error=skip")[1]


def test_images_beside_the_classes_are_named(folder):
    (folder / "ant" / "00.png").rename(folder / "stray.png")
    (folder / "README.txt").write_text("x")
    said = prepare(folder)[1]
    assert "1 left out" in said and "stray.png" in said and "README" not in said


def test_checksums_are_an_option(folder):
    files = [prepare(folder, *options)[0].data for options in ((), ("--data.checksums=true",), ())]
    assert [Reader(data.val_dataset).has_checksums for data in files] == [False, True, False]
    assert Reader(files[1].train_dataset).has_checksums and files[0].train_dataset == files[2].train_dataset


def test_ink_and_grey_images_are_taken(folder):
    pixels = pictures(2, 24, 3)[0]
    Image.fromarray(pixels[0]).convert("CMYK").save(folder / "ant" / "ink.jpg", quality=100)
    Image.fromarray(pixels[1]).convert("L").save(folder / "ant" / "grey.png")
    with Reader(prepare(folder, "--data.side=24", "--data.val_share=0.01")[0].data.train_dataset) as train:
        found = [train.value(i, "image") for i in range(len(train))]
    assert any(np.abs(image.astype(int) - pixels[0]).mean() < 6 for image in found)
    assert any((image == np.asarray(Image.fromarray(pixels[1]).convert("L"))[..., None]).all() for image in found)


def test_folders_that_are_none(folder, tmp_path):
    with pytest.raises(ConfigError, match="needs data.folder"):
        image_folder.prepare(config.load(["--data.source=folder"], environ={}), print)
    with pytest.raises(DataError, match="no such folder \\(data.folder, --data.folder\\)"):
        prepare(tmp_path / "none")
    with pytest.raises(DataError, match="one class only .* expected one sub-folder per class, 2 to 1,000"):
        (tmp_path / "one" / "ant").mkdir(parents=True)
        prepare(tmp_path / "one")
    with pytest.raises(DataError, match="gnu: a class without images .*, or, if it is no class, remove it"):
        (folder / "gnu").mkdir()
        prepare(folder)
    for part in ("Train", "val"):
        (tmp_path / "parts" / part / "ant").mkdir(parents=True)
    with pytest.raises(DataError, match="Train, val look like parts .*folder=.*/Train --data.val_folder=.*/val"):
        prepare(tmp_path / "parts")


@pytest.mark.parametrize("inside", [".", "ant", "new/one", "link"])
@pytest.mark.parametrize("key", ["folder", "val_folder"])
def test_files_are_not_made_among_the_images(folder, tmp_path, inside, key):
    (tmp_path / "pictures" / "link").symlink_to("bee")
    (tmp_path / "other").mkdir()
    images, root = {"folder": folder, "val_folder": tmp_path / "other"}, folder / inside
    if key == "val_folder":
        images = {"folder": tmp_path / "other", "val_folder": folder}
    words = [f"--data.{name}={value}" for name, value in images.items()]
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ConfigError, match=rf"data.root = .* \(--data.root\) is inside data.{key} = .*--data.root=DIR"):
        image_folder.prepare(config.load([*words, "--data.source=folder", f"--data.root={root}"], environ={}), print)
    assert sorted(tmp_path.rglob("*")) == before


def test_one_image_a_class_leaves_nothing_for_the_test(tmp_path):
    for number, name in enumerate(NAMES[:2]):
        (tmp_path / "few" / name).mkdir(parents=True)
        Image.fromarray(pictures(2, 24, 2)[0][number]).save(tmp_path / "few" / name / "x.png")
    with pytest.raises(DataError, match="only one image in each class, which leaves none for the test"):
        prepare(tmp_path / "few")


# ---- trainings ----

SHORT = {"widths": (16, 16, 16), "batch_size": 30, "epochs": 3, "whiten_images": 60, "lr": 0.1, "head_scale": 1 / 16}


@trains
@pytest.mark.parametrize(("side", "classes", "grey"), [(16, 2, True), (96, 3, False), (44, 5, False)])
def test_training_on_other_images(tmp_path, side, classes, grey):
    train = write(tmp_path / "a.beton", *pictures(120, side, classes, 0, grey), "x", "y")
    test = write(tmp_path / "b.beton", *pictures(60, side, classes, 1, grey), "x", "y")
    names = [f"kind {i}" for i in range(classes)]
    recipe = fitted(recipes.get("airbench94"), train, test).replace(**SHORT)
    options = {"threads": 2, "num_workers": 1, "device": "cpu", "classes": names}
    with Trainer(recipe, train, test, **options) as trainer:
        for _ in trainer.run_epoch():
            pass
        trainer.end_epoch()
        trainer.save(tmp_path / "begun.safetensors")
        finish(trainer)
        report, whole = trainer.evaluate(), trainer.state_dict()
        trainer.save(tmp_path / "x.safetensors")
    assert report.accuracy >= 0.9
    with Trainer(recipe, train, test, **options) as trainer:
        trainer.resume(tmp_path / "begun.safetensors")
        finish(trainer)
        trainer.evaluate()
        same_state(trainer.state_dict(), whole)
    classifier = nn.load(tmp_path / "x.safetensors")
    images, labels = pictures(60, side, classes, 1, grey)
    assert classifier.classes == tuple(names)
    assert (classifier.predict(images) == labels).mean() == pytest.approx(report.accuracy, abs=0.02)
    with pytest.raises(ValueError, match=rf"expected \(n, {side}, {side}, 3\)"):
        classifier.predict(np.zeros((1, 32, 32, 3), np.uint8))


@trains
def test_the_other_network_takes_a_thousand_classes(tmp_path):
    images, labels = pictures(1000, 16, 20)
    train = write(tmp_path / "a.beton", images, np.arange(1000))
    recipe = fitted("resnet9", train).replace(batch_size=50, epochs=0.1, lr_peak_epoch=0)
    with Trainer(recipe, train, train, threads=2, num_workers=1, device="cpu") as trainer:
        assert trainer.network.parameter("head.weight").shape == (1000, 512)
        steps, _ = finish(trainer)
        assert steps[0].loss == pytest.approx(np.log(1000), abs=0.3)  # it knows nothing yet
        trainer.save(tmp_path / "x.safetensors")
    assert nn.load(tmp_path / "x.safetensors").classes[999] == "999"


def test_data_that_do_not_fit_the_recipe_name_what_makes_it_fit(tmp_path):
    path = write(tmp_path / "a.beton", *pictures(20, 16, 11))
    with pytest.raises(DataError, match="label 10; expected 0 to 9 .*cgxffcv.train.fitted"):
        Trainer("airbench94", path, device="cpu")
    with pytest.raises(DataError, match="16 x 16 pixels; recipe airbench94 is made for 32 x 32 .*cgxffcv.train.fitted"):
        Trainer(recipes.get("airbench94").replace(classes=11, batch_size=10), path, device="cpu")
    with pytest.raises(RecipeError, match="classes names 2 classes; the recipe has 10"):
        Trainer("airbench94", path, device="cpu", classes=["a", "b"])


@trains
def test_the_command_trains_on_a_folder_and_predicts_by_name(folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("CGXFFCV_COMM_NCCL", "0")
    words = ["train", "--data.source=folder", f"--data.folder={folder}", f"--data.root={tmp_path / 'data'}"]
    words += ["--data.side=16", "--training.recipe=airbench94", "--recipe.widths=16,16,16", "--epochs=2", "--no-cuda"]
    words += [f"--log-dir={tmp_path / 'run'}", "--data.num_workers=1", "--training.num_workers=1"]
    assert cli.run(words) == 0
    said = "".join(capsys.readouterr())
    assert "a step takes 16 images, not the 2,000 of recipe airbench94: the training set has only 21" in said
    header = checkpoint.load(tmp_path / "run" / "best.safetensors")
    assert header["classes"] == list(NAMES) and header["recipe"]["classes"] == 3 and header["recipe"]["side"] == 16
    assert cli.run([*words, "--resume", "--epochs=3"]) == 0
    assert "resuming from" in "".join(capsys.readouterr())
    image = next((folder / "cow").glob("*.png"))
    assert cli.run(["predict", str(tmp_path / "run"), str(image), "--resize", "--json"]) == 0
    assert set(json.loads(capsys.readouterr().out)["probabilities"]) == set(NAMES)


def test_convert_keeps_the_names(folder, tmp_path):
    out = tmp_path / "all.beton"
    assert cli.run(["convert", str(folder), str(out), "--workers=1"]) == 0
    assert read_names(out) == NAMES and names_file(out) == f"{out}.classes"
