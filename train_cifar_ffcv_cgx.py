#!/usr/bin/env python3
"""Trains on the .beton files that write_datasets.py made; gradients are averaged over all ranks, compressed if asked to.

    python train_cifar_ffcv_cgx.py                                        one process
    mpirun -np 4 python train_cifar_ffcv_cgx.py --dist-backend cgx --quantization-bits 4

Without --training.recipe it trains as the demo does (ResNet-9, 20 epochs). See --help for everything else.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

from cgxffcv import app, config, report, session


def show_epoch(run: session.Run, epoch: object, test: object, sent: int) -> None:
    """A line that stays, and a record in run.jsonl and log.csv."""
    rate = epoch.images / epoch.seconds if epoch.seconds > 0 else 0.0
    run.note(
        f"epoch {epoch.epoch + 1:>3}/{run.epochs}: loss {epoch.loss:.3f}, train {epoch.accuracy:6.2%}, "
        f"test {test.accuracy:6.2%}, {rate:,.0f} img/s, {report.duration(epoch.seconds)}"
        + (f", {report.size(epoch.wire_bytes)} sent" if run.ranks > 1 else "")
    )
    run.event(
        "epoch",
        epoch=epoch.epoch + 1, steps=sent, seconds=epoch.seconds, images_per_second=rate, lr=run.rate,
        train_loss=epoch.loss, train_accuracy=epoch.accuracy, test_loss=test.loss, test_accuracy=test.accuracy,
        wire_bytes=epoch.wire_bytes, skipped=epoch.skipped, replica_hash=epoch.replica_hash,
    )  # fmt: skip


def train(run: session.Run, trainer: object) -> None:
    """Every epoch: train, test, keep a checkpoint."""
    while not trainer.finished:
        for step in trainer.run_epoch():
            run.step(step)
        epoch, test = trainer.end_epoch(), None
        best = trainer.best_accuracy
        test = trainer.evaluate()
        show_epoch(run, epoch, test, trainer.step)
        trainer.save(run.folder / "last.safetensors")
        if test.accuracy > best:
            trainer.save(run.folder / "best.safetensors", best=True)


def main() -> int:
    began = time.monotonic()
    settings = config.load(prog="train_cifar_ffcv_cgx.py", description=__doc__.split("\n")[0])
    return session.run(settings, train, began)


if __name__ == "__main__":
    app.run("train_cifar_ffcv_cgx.py", main)
