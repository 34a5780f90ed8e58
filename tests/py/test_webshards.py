"""Tar files of samples, as WebDataset lays them out: from_webdataset and what its pipelines can do."""

import io

import _cgxffcv
import numpy as np
import pytest
from tars import write_tar

from cgxffcv import DatasetWriter, Reader
from cgxffcv.fields import BytesField, IntField, JSONField, RGBImageField
from cgxffcv.writer.webshards import Shards, expand


def test_tar_shards(tmp_path):
    fields = {"blob": BytesField(), "label": IntField(), "meta": JSONField()}
    for shard in range(3):
        members = {}
        for i in range(4):
            parts = {"bin": bytes([shard, i]), "cls": b"%d" % i, "json": b'{"s": %d}' % shard}
            members |= {f"dir/{shard}{i}.{extension}": data for extension, data in parts.items()}
        write_tar(tmp_path / f"part-{shard:02d}.tar", members)
    DatasetWriter(tmp_path / "x.beton", fields, num_workers=1).from_webdataset(
        str(tmp_path / "part-{00..02}.tar"), lambda shards: shards.decode().to_tuple("bin;dat", "cls", "json")
    )
    with Reader(tmp_path / "x.beton") as reader:
        assert [tuple(sample.values()) for sample in reader] == [
            (bytes([shard, i]), i, {"s": shard}) for shard in range(3) for i in range(4)
        ]
    array = io.BytesIO()
    np.save(array, np.arange(3))
    other = write_tar(tmp_path / "other.tar", {"a.idx.cls": b"4", "a.npy": array.getvalue()})
    steps = Shards(other).decode().rename(label="cls;idx.cls").to_tuple("npy label")
    ((got, label),) = steps.map_tuple(lambda values: values + 1)
    assert got.tolist() == [1, 2, 3] and label == 4
    with pytest.raises(ValueError, match="has no txt, only bin, cls, json"):
        DatasetWriter(tmp_path / "y.beton", fields, num_workers=1).from_webdataset(
            [tmp_path / "part-00.tar"], lambda shards: shards.to_tuple("bin", "cls", "txt")
        )
    assert not (tmp_path / "y.beton").exists()


@pytest.fixture
def photos(tmp_path):
    """A tar file of ten JPEG images and classes."""
    streams = [_cgxffcv.jpeg_encode(np.full((8, 8 + i, 3), 20 * i, np.uint8), 90) for i in range(10)]
    members = {}
    for i, jpg in enumerate(streams):
        members |= {f"s{i}.jpg": jpg, f"s{i}.cls": b"%d" % i}
    return write_tar(tmp_path / "x.tar", members), streams


def test_what_functions_see_of_shards(photos, tmp_path):
    """Images are decoded if a function looks at them, and otherwise pass through unchanged."""
    pytest.importorskip("PIL")
    shards, streams = Shards(photos[0]), photos[1]
    assert [tuple(sample) for sample in shards.decode("rgb8").to_tuple("jpg:png;jpeg cls")] == [
        (jpg, i) for i, jpg in enumerate(streams)
    ]
    for image, label in shards.decode("rgb8").rename(image="jpg").map(lambda s: (s["image"][:4], s["cls"])):
        assert image.dtype == np.uint8 and image.shape == (4, 8 + label, 3)
    ((grey, _),) = shards.decode("l").select(lambda s: s["jpg"].shape[1] == 10).to_tuple("jpg", "cls")
    assert grey.dtype == np.float32 and grey.shape == (8, 10) and abs(grey - 40 / 255).max() < 0.02
    *_, (image, label) = shards.decode("pil").to_tuple("jpg cls").map_tuple(lambda image: image.size)
    assert (image, label) == ((17, 8), 9)
    own = shards.decode(lambda extension, data: len(data) if extension == ".jpg" else None).to_tuple("jpg", "cls")
    assert list(own) == [(len(jpg), i) for i, jpg in enumerate(streams)]
    fields = {"image": RGBImageField("jpg"), "label": IntField()}
    for name, chain in {"kept": lambda s: s, "seen": lambda s: s.select(lambda sample: sample["cls"] % 2)}.items():
        writer = DatasetWriter(tmp_path / name, fields, num_workers=1)
        writer.from_webdataset([photos[0]], lambda s, chain=chain: chain(s.decode("rgb8")).to_tuple("jpg;png", "cls"))
    with Reader(tmp_path / "kept") as kept, Reader(tmp_path / "seen") as seen:
        assert [kept.stored_image(i, "image")[3] for i in range(10)] == streams
        assert seen.column("label").tolist() == [1, 3, 5, 7, 9]
    for kind in ("rgb9", "pil8", "", "8"):
        with pytest.raises(ValueError, match="images become arrays with 'rgb8'"):
            shards.decode(kind)


def test_shards_are_shuffled_within_a_window(photos):
    labels = Shards(photos[0]).decode().map(lambda sample: sample["cls"])
    order = list(labels.shuffle(4))
    assert sorted(order) == list(range(10)) != order and order == list(labels.shuffle(4, initial=2))
    assert all(label <= place + 3 for place, label in enumerate(order))
    assert order != list(labels.shuffle(4, seed=1)) and list(labels.shuffle(0)) == list(range(10))


def test_a_function_that_fails_names_the_sample_of_the_shard(photos):
    with pytest.raises(ZeroDivisionError) as caught:
        list(Shards(photos[0]).decode().to_tuple("cls").map(lambda sample: 1 // (sample[0] - 4)))
    assert caught.value.__notes__ == [f"the last one read: sample 's4' of {photos[0]}"]


def test_shard_patterns():
    assert expand("a-{8..10}.tar") == ["a-8.tar", "a-9.tar", "a-10.tar"]
    assert expand("{00..01}/{1..2}") == ["00/1", "00/2", "01/1", "01/2"]
    assert expand("plain.tar") == ["plain.tar"]
    for pattern in ("a-{5..1}.tar", "a-{0..99999999999}.tar"):
        with pytest.raises(ValueError, match=r"a-.*a range counts upwards"):
            expand(pattern)
