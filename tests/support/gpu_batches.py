"""Batches on a GPU for the tests of resident and fed training: chains of operations, a core trainer, a loader."""

import _cgxffcv

from cgxffcv import nn, recipes
from cgxffcv.decoders import IntDecoder, SimpleRGBImageDecoder
from cgxffcv.loader import Loader
from cgxffcv.train.optim import Sgd
from cgxffcv.train.plan import Group, Phase
from cgxffcv.transforms import (
    AlternatingFlip,
    CutMix,
    Cutout,
    GaussianBlur,
    ImageMixup,
    RandAugment,
    RandomBrightness,
    RandomContrast,
    RandomCrop,
    RandomErasing,
    RandomGrayscale,
    RandomHorizontalFlip,
    RandomHue,
    RandomSaturation,
    RandomTranslate,
    RandomVerticalFlip,
    Solarization,
)

RECIPE = recipes.get("airbench94")
COUNT = 53
FILL = (125, 122, 113)
CHAINS = {
    "nothing": [],
    "airbench": [RandomCrop(32, padding=2, fill="reflect"), AlternatingFlip()],
    "demo": [RandomHorizontalFlip(), RandomTranslate(2, fill=(0, 0, 0)), Cutout(8, fill=FILL)],
    "far": [RandomTranslate(31, fill=FILL), RandomHorizontalFlip(0.3), RandomCrop(32, padding=31, fill="reflect")],
    "holes": [
        Cutout(20, fill=FILL),
        RandomHorizontalFlip(),
        Cutout(5, fill=(1, 2, 3)),
        AlternatingFlip(),
        RandomCrop(32, padding=5, fill=(9, 8, 7)),
        Cutout(32, fill=(4, 5, 6)),
        RandomTranslate(3),
        Cutout(1),
    ],
    "mixup": [RandomHorizontalFlip(), ImageMixup(0.8, same_lambda=True)],
    "mixup among others": [
        Cutout(9, fill=FILL),
        RandomBrightness(0.5),
        ImageMixup(0.3, same_lambda=False),
        RandomTranslate(3, fill=FILL),
        RandomBrightness(0.4),
        Cutout(5),
    ],
    "vertical": [
        RandomVerticalFlip(),
        RandomTranslate(5, fill=FILL),
        RandomVerticalFlip(),
        RandomErasing(fill=FILL),
        RandomHorizontalFlip(),
        RandomCrop(32, padding=7, fill="reflect"),
    ],
    "jitter": [
        RandomBrightness(0.4),
        RandomContrast(0.4),
        RandomSaturation(0.4),
        RandomHue(0.2),
        RandomGrayscale(0.3),
        Solarization(),
    ],
    "contrast of what is cut": [
        RandomContrast(0.9, 1),
        CutMix(1, same_lambda=False),
        RandomErasing(fill=FILL),
        RandomContrast(0.9, 1),
        RandomVerticalFlip(),
    ],
    "blur": [RandomTranslate(3, fill=FILL), GaussianBlur(5, (0.5, 2), p=0.7), Cutout(9), RandomHue(0.3)],
    "blur twice": [GaussianBlur(3, p=1), RandomVerticalFlip(), GaussianBlur(3, p=1)],
    "blur of what is mixed": [Solarization(), ImageMixup(1, same_lambda=False), GaussianBlur(3), RandomContrast(0.5)],
    "mixed after a blur": [GaussianBlur(3), RandomContrast(1), CutMix(same_lambda=True), RandomBrightness(0.3)],
    "randaugment": [RandomCrop(32, padding=4, fill="reflect"), RandomHorizontalFlip(), RandAugment(2, 14, fill=FILL)],
    "randaugment among others": [
        RandomContrast(0.5),
        RandAugment(1, 20),
        ImageMixup(0.5, same_lambda=False),
        RandAugment(1, 30, fill=FILL),
        Cutout(5),
    ],
    "brightness": [RandomBrightness(0.7, p=0.8)],
    "brightness among others": [
        Cutout(9, fill=FILL),
        RandomBrightness(0.5, p=1),
        RandomTranslate(3, fill=FILL),
        RandomBrightness(2),
        RandomHorizontalFlip(),
        Cutout(5, fill=(250, 1, 99)),
    ],
}


def core_trainer(batch=20, test_batch=20, description=None, **options):
    description = description or nn.airbench((8, 16, 24))
    network = nn.Network(description, backend="cuda", precision="float32", threads=1, **options)
    core = _cgxffcv.Trainer(
        network.core,
        None,
        None,
        groups=[Group("all", Sgd(), 0.1, ()).core()],
        phases=[vars(Phase(0, 32, 0))],
        steps=4,
        side=32,
        batch=batch,
        test_batch=test_batch,
        mean=RECIPE.mean,
        std=RECIPE.std,
        label_smoothing=0.0,
        loss="sum",
        project="never",
        lookahead_every=0,
        lookahead_base=0.5,
    )
    return network, core


def loader_of(path, chain, batch, **options):
    pipelines = {"image": [SimpleRGBImageDecoder(), *chain], "label": [IntDecoder()]}
    return Loader(path, batch, pipelines=pipelines, num_workers=1, ids=True, rank=0, world_size=1, **options)
