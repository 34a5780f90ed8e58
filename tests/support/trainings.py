"""Shared by tests of trainers: small recipes, trainers of them, training to the end, and comparing two states."""

import numpy as np
from thread_ranks import all_good, run_ranks

from cgxffcv import recipes
from cgxffcv.train import Trainer

MUON = recipes.get("airbench94").replace(
    name="small",
    widths=(16, 16, 16),
    head_scale=1 / 16,
    batch_size=50,
    epochs=2,
    whiten_images=100,
    lr=0.1,
    whiten_bias_epochs=1,
)
SAVERS = MUON.replace(
    depths=(2, 3, 2),
    resolutions=((0, 16), (0.3, 24), (0.6, 32)),
    hardest=((0.4, 0.5),),
    epochs=3,
    freeze_block1_share=0.2,
    activation="relu",
    whiten_bias_random=False,
    whiten_bias_epochs=0.5,
)
SMALL = {
    "muon": MUON,
    "savers": SAVERS,
    "averaging": recipes.get("airbench93").replace(
        name="small", widths=(16, 16, 16), batch_size=50, epochs=2.6, whiten_images=100, lr=250.0
    ),
    "resnet18": recipes.get("resnet18").replace(
        name="small", widths=(8, 16, 16, 24), batch_size=50, epochs=1.6, lr=0.1, lr_peak_epoch=0.4
    ),
    "sgd": recipes.get("ffcv").replace(name="small", batch_size=10, epochs=0.2, lr=0.05, lr_peak_epoch=0.1),
}


def trainer_of(files, name, **options):
    usual = {"threads": 2, "precision": "float32", "num_workers": 2, "device": "cpu"}
    return Trainer(SMALL[name] if isinstance(name, str) else name, *files, **(usual | options))


def on_ranks(ranks, name, files, work):
    """work(trainer) on that many ranks; the results."""
    return all_good(run_ranks(ranks, lambda world, rank: with_it(trainer_of(files, name, threads=1, comm=world), work)))


def with_it(trainer, work):
    """work(trainer), which is closed afterwards."""
    with trainer:
        return work(trainer)


def finish(trainer):
    """Trains to the end; the reports of all steps and epochs."""
    steps, epochs = [], []
    while not trainer.finished:
        steps += list(trainer.run_epoch())
        epochs.append(trainer.end_epoch())
    return steps, epochs


def same_state(a, b):
    """Asserts that two state_dicts are equal bit for bit."""
    assert set(a) == set(b)
    for name, value in a.items():
        if isinstance(value, np.ndarray):
            assert (value.dtype, value.shape) == (b[name].dtype, b[name].shape), name
            assert value.tobytes() == b[name].tobytes(), name
        else:
            assert value == b[name], name
