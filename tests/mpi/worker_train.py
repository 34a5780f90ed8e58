"""The ranks of test_train.py: worker_train.py CASE OUT RECIPE TRAIN TEST COMPRESSION, two of them JSON."""

import json
import os
import signal

import numpy as np
from worker_comm import ARGUMENTS, CASE, OUT, join, put

from cgxffcv import comm
from cgxffcv.recipes import Recipe
from cgxffcv.train import Trainer

RECIPE, TRAIN, TEST, COMPRESSION = ARGUMENTS


def make(world, **options):
    options = {
        "threads": 1,
        "num_workers": 1,
        "precision": os.environ.get("TEST_PRECISION", "float32"),
        "test_batch": 20,
        "device": os.environ.get("TEST_DEVICE", "cpu"),
        "deterministic": True,
    } | options
    if str(world.rank) in os.environ.get("TEST_FED_RANKS", ""):
        options["resident"] = False
    recipe = Recipe(**json.loads(RECIPE))
    if str(world.rank) == os.environ.get("TEST_WIDE_RANK"):
        recipe = recipe.replace(widths=(*recipe.widths[:-1], recipe.widths[-1] + 8))
    return Trainer(recipe, TRAIN, TEST, comm=world, compression=json.loads(COMPRESSION), **options)


def finish(trainer, at=lambda report: None):
    steps, epochs = [], []
    while not trainer.finished:
        for report in trainer.run_epoch():
            steps.append(report)
            at(report)
        epochs.append(trainer.end_epoch())
    return steps, epochs


def train(world):
    with make(world) as trainer:
        steps, epochs = finish(trainer)
        test = trainer.evaluate()
        trainer.save(OUT / "final.safetensors")
        return {
            "hashes": [epoch.replica_hash for epoch in epochs],
            "images": [epoch.images for epoch in epochs],
            "accuracy": test.accuracy,
            "tested": test.images,
            "correct": test.correct,
            "loss": test.loss,
            "losses": [step.loss for step in steps],
            "wire": [step.wire_bytes for step in steps],
            "skipped": [step.step for step in steps if step.skipped],
            "plain": trainer._core.wire(0)[1],
            "explain": trainer.explain(),
            "resident": trainer.resident,
        }


def resume(world):
    """Stops in the middle of the second epoch, continues with another trainer."""
    with make(world) as trainer:
        list(trainer.run_epoch())
        trainer.end_epoch()
        for report in trainer.run_epoch():
            if report.step == trainer.steps_per_epoch:
                break
        trainer.save(OUT / "half.safetensors")
    with make(world) as trainer:
        trainer.resume(OUT / "half.safetensors")
        finish(trainer)
        test = trainer.evaluate()
        trainer.save(OUT / "final.safetensors")
        return {"accuracy": test.accuracy, "loss": test.loss}


def poison(world):
    """The last rank's parameters are NaN in the third step."""
    with make(world) as trainer:
        core, kept = trainer._core, []

        def between(report):
            if world.rank < world.size - 1 or report.step not in (1, 2):
                return
            if report.step == 1:
                kept.append(core.read("parameters"))
            core.write("parameters", np.full_like(kept[0], np.nan) if report.step == 1 else kept[0])

        steps, epochs = finish(trainer, between)
        return {
            "skipped": [step.step for step in steps if step.skipped],
            "hashes": [e.replica_hash for e in epochs],
            "reported": [epoch.skipped for epoch in epochs],
            "accuracy": trainer.evaluate().accuracy,
        }


def leave(world, end=lambda: os._exit(3)):
    """The last rank dies in mid-epoch."""
    with make(world) as trainer:
        if world.rank == world.size - 1:
            trainer.steps_at_once = 1
        try:
            for report in trainer.run_epoch():
                if world.rank == world.size - 1 and report.step == 1:
                    end()
        except comm.CommError as error:
            return {"error": f"{type(error).__name__}: {error}", "step": trainer.step}
        return {"error": None}


def stop(world):
    """The last rank is stopped in mid-epoch."""
    return leave(world, lambda: os.kill(os.getpid(), signal.SIGSTOP))


def differ(world):
    """One rank's parameters are changed without the trainer's knowledge."""
    with make(world) as trainer:
        list(trainer.run_epoch())
        if world.rank == 1:
            trainer.network.parameters[5] += 1e-3
        try:
            trainer.end_epoch()
        except comm.CommError as error:
            return {"error": str(error)}
        return {"error": None}


def unwritable(world):
    with make(world) as trainer:
        try:
            trainer.save(OUT / "no" / "folder.safetensors")
        except OSError as error:
            return {"error": str(error)}
        return {"error": None}


with join() as world:
    put(f"result.{world.rank}", json.dumps(globals()[CASE](world)))
