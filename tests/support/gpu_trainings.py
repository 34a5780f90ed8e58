"""Small trainings on a GPU, and what tests compare of them."""

import trainings

from cgxffcv.train import Trainer

FEW = {"name": "tiny", "widths": (8, 16, 24), "batch_size": 8, "whiten_images": 10}
MUON = trainings.MUON.replace(head_scale=1 / 24, **FEW)
TINY = {
    "muon": MUON,
    "savers": trainings.SAVERS.replace(head_scale=1 / 24, test_share=0.3, **FEW),
    "averaging": trainings.SMALL["averaging"].replace(epochs=2.3, **FEW),
}


def trainer_of(files, name, **options):
    chosen = {"threads": 1, "num_workers": 1, "device": "gpu", "precision": "float32", "deterministic": True}
    recipe = TINY[name] if isinstance(name, str) else name
    return Trainer(recipe, *files, **(chosen | {"test_batch": 4} | options))


def what(steps):
    return [(s.epoch, s.step, s.images, s.loss, s.correct, s.rate, s.skipped, s.resolution) for s in steps]
