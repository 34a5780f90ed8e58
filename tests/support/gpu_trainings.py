"""Small trainings on a GPU, and what tests compare of them."""

from cgxffcv import recipes
from cgxffcv.train import Trainer

MUON = recipes.get("airbench94").replace(
    name="tiny",
    widths=(8, 16, 24),
    head_scale=1 / 24,
    batch_size=8,
    epochs=2,
    whiten_images=10,
    lr=0.1,
    whiten_bias_epochs=1,
)


TINY = {
    "muon": MUON,
    "savers": MUON.replace(
        depths=(2, 3, 2),
        resolutions=((0, 16), (0.3, 24), (0.6, 32)),
        hardest=((0.4, 0.5),),
        epochs=3,
        freeze_block1_share=0.2,
        activation="relu",
        whiten_bias_random=False,
        whiten_bias_epochs=0.5,
        test_share=0.3,
    ),
    "averaging": recipes.get("airbench93").replace(
        name="tiny", widths=(8, 16, 24), batch_size=8, epochs=2.3, whiten_images=10, lr=250.0
    ),
}


def trainer_of(files, name, **options):
    chosen = {"threads": 1, "num_workers": 1, "device": "gpu", "precision": "float32", "deterministic": True}
    recipe = TINY[name] if isinstance(name, str) else name
    return Trainer(recipe, *files, **(chosen | {"test_batch": 4} | options))


def what(steps):
    return [(s.epoch, s.step, s.images, s.loss, s.correct, s.rate, s.skipped, s.resolution) for s in steps]
