"""Trains on .beton files written before, with gradients averaged over all ranks.

    cgxffcv train                                                           one process
    cgxffcv launch -np 4 train --dist-backend cgx --quantization-bits 4     four, compressed gradients
    cgxffcv train --data.source=folder --data.folder=DIR                    your own images: DIR/CLASS/IMAGE
    cgxffcv train --data.source=sample                                      a first try, on the images that come with it

Without --training.recipe it trains resnet9: ResNet-9 in 20 epochs, 93.6 % on CIFAR-10; on the sample, where there is no
GPU, airbench90.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from cgxffcv import interrupts
from cgxffcv.app import config, eventfile, process, session
from cgxffcv.wording import counted


def main(prog: str, arguments: Sequence[str]) -> int:
    began = time.monotonic()
    settings = config.load(arguments, prog=prog, description=__doc__)
    session.named_recipe(settings)
    if settings.log.tensorboard:
        eventfile.check_installed("log.tensorboard")
    compression = session.choose_compression(settings, process.say)
    session.refuse_unread_folder(settings)
    if settings.data.source not in ("folder", "sample"):
        session.check_files(settings)
    checkpoint = session.checkpoint_to_resume(settings)
    threads = session.set_threads(process.say)
    session.make_files(settings)
    facts = session.look_at_images(settings, threads)
    recipe = session.choose_recipe(settings, process.say, facts)
    gpu = session.choose_device(settings, process.say)
    process.say(settings.summary())
    process.say(
        f"{settings.data.train_dataset}: {counted(facts.samples, 'training image')} of "
        f"{counted(facts.classes, 'class')}, {facts.side} x {facts.side} pixels"
    )

    from cgxffcv import comm  # after set_threads: loading the C core starts oneDNN's threads
    from cgxffcv.app.run import Run
    from cgxffcv.train import Trainer

    interrupts.careful()
    with (
        session.lock_folder(settings, process.say),
        comm.world(timeout=settings.comm.timeout) as world,
        Trainer(
            recipe,
            settings.data.train_dataset,
            settings.data.val_dataset,
            seed=settings.training.seed,
            comm=world,
            compression=compression,
            device="cpu" if gpu is None else "gpu",
            gpu=gpu,
            precision=settings.training.precision,
            deterministic=settings.training.deterministic,
            resident=settings.training.resident,
            threads=threads,
            num_workers=session.loader_threads(settings, threads),
            test_batch=settings.training.val_batch_size,
            classes=facts.names,
        ) as trainer,
    ):
        changes = [] if checkpoint is None else trainer.resume(checkpoint)
        with Run(settings, trainer, began, checkpoint, changes, session.trained_on(settings)) as run:
            while not trainer.finished:
                for step in trainer.run_epoch():
                    run.step(step)
                epoch = trainer.end_epoch()
                # the mean over a recipe's test views costs several tests: only the last one takes it
                test = trainer.evaluate(tta=trainer.finished) if run.test_is_due() else None
                run.epoch(epoch, test)
    return 0
