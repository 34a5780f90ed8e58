"""From a configuration to a run: the recipe, the files, the threads, the log folder, the checkpoint to resume from."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import TYPE_CHECKING

from cgxffcv import device, recipes, wording
from cgxffcv.app import process
from cgxffcv.app.config import Config
from cgxffcv.app.folder_lock import FolderLock
from cgxffcv.app.schema import MOST_THREADS, OF_TRAINING, SCHEMA
from cgxffcv.errors import ConfigError, UserError
from cgxffcv.recipes import Recipe, RecipeError

if TYPE_CHECKING:
    from cgxffcv.train.facts import ImageFacts

LEAST_STEPS, LEAST_BATCH = 8, 16  # per epoch, and images per step, if a small data set makes batches smaller


def named_recipe(config: Config) -> Recipe:
    """The recipe that training.recipe names, as it was published."""
    try:
        return recipes.get(config.training.recipe)
    except ValueError as error:
        raise ConfigError([f"{config.origin('training.recipe')}: training.recipe: {error}"]) from None


def choose_recipe(config: Config, say: process.Say, facts: ImageFacts | None = None) -> Recipe:
    """The recipe with all changes that the configuration makes to it; fills the rest of the configuration from it.

    facts: about the images, to which the recipe is fitted first; None: they are CIFAR-10's."""
    recipe = named_recipe(config)
    name = recipe.name
    if facts is not None and not facts.of_cifar:
        recipe = _fit_batch(config, facts.fit(recipe), facts.samples, say)
        recipe = _fit_passes(config, recipe, facts.samples, say)
    changes = {field: f"training.{field}" for field in OF_TRAINING}
    changes |= {key.split(".")[1]: key for key in SCHEMA if key.startswith("recipe.")}
    explicit = {field: key for field, key in changes.items() if config.has_value(key)}
    try:
        changed = recipe.replace(**{field: config[key] for field, key in explicit.items()})
    except (RecipeError, ValueError) as error:
        origins = ", ".join(f"{key} ({config.origin(key)})" for field, key in explicit.items() if field in str(error))
        raise ConfigError([f"{error}{f'; from {origins}' if origins else ''}"]) from None
    if config.has_value("training.lr_peak_epoch") and changed.schedule != "triangle":
        say(f"note: training.lr_peak_epoch is not used: the schedule of recipe {name} ({changed.schedule}) has no peak")
    changed = _share_batch(config, changed, say)
    values = {key: getattr(changed, field) for field, key in changes.items()}
    if changed.schedule != "triangle":
        del values["training.lr_peak_epoch"]
    config.fill(values, f"recipe {name}", {key: getattr(recipe, field) for field, key in changes.items()})
    return changed


def _fit_batch(config: Config, recipe: Recipe, samples: int, say: process.Say) -> Recipe:
    """Makes batches smaller for a small data set, so that an epoch has several steps; a learning rate for mean
    gradients shrinks with them (one for sums need not)."""
    ranks = process.ranks() if recipe.batch_scope == "process" else 1
    if config.has_value("training.batch_size") or samples >= LEAST_STEPS * recipe.batch_size * ranks:
        return recipe
    batch = 2 ** max((samples // (LEAST_STEPS * ranks)).bit_length() - 1, 0)
    batch = min(max(batch, LEAST_BATCH), recipe.batch_size, max(samples // ranks, 1))
    lr = recipe.lr if recipe.loss_sum else recipe.lr * batch / recipe.batch_size
    rate = "" if recipe.loss_sum else f", at a rate of {lr:.4g} instead of {recipe.lr:g}"
    say(
        f"note: a step takes {batch:,} images, not the {recipe.batch_size:,} of recipe {recipe.name}{rate}: the "
        f"training set has only {samples:,}"
    )
    return recipe.replace(batch_size=batch, lr=lr)


def _fit_passes(config: Config, recipe: Recipe, samples: int, say: process.Say) -> Recipe:
    """Drops passes over only the hardest images of a small data set where these are fewer than a batch."""
    batch = config.training.batch_size if config.has_value("training.batch_size") else recipe.batch_size
    batch *= process.ranks() if recipe.batch_scope == "process" else 1
    hardest = tuple((share, fraction) for share, fraction in recipe.hardest if int(fraction * samples) >= batch)
    if hardest == recipe.hardest or config.has_value("recipe.hardest"):
        return recipe
    left = ", ".join(f"{fraction:.0%}" for share, fraction in recipe.hardest if (share, fraction) not in hardest)
    say(
        f"note: no pass takes only the hardest {left} of the images, as in recipe {recipe.name}: they are fewer than a "
        "batch"
    )
    return recipe.replace(hardest=hardest)


def _share_batch(config: Config, recipe: Recipe, say: process.Say) -> Recipe:
    """The recipe with a batch per step that all processes can share evenly, unless its size was configured."""
    batch, ranks = recipe.batch_size, process.ranks()
    if recipe.batch_scope == "process" or batch % ranks == 0 or config.has_value("training.batch_size"):
        return recipe
    fits = max(batch // ranks, 1) * ranks
    say(
        f"note: a step takes {fits:,} images, not the {batch:,} of recipe {recipe.name}, so that {ranks} processes "
        "share them evenly"
    )
    config.fill({"training.batch_size": fits}, f"recipe {recipe.name}, for {ranks} processes")
    return recipe.replace(batch_size=fits)


def choose_compression(config: Config, say: process.Say) -> dict[str, object] | None:
    """How gradients are compressed, None if they are not; as in the demo, compression needs the cgx backend."""
    c = config.compression
    if config.comm.backend != "cgx":
        if c.bits != 32:
            say(
                f"note: gradients are sent UNCOMPRESSED: compression.bits = {c.bits} needs comm.backend = cgx, not "
                f"{config.comm.backend} ({config.origin('comm.backend')}); add --dist-backend cgx"
            )
        return None
    if c.bits == 32:
        return None
    return {
        "bits": c.bits,
        "bucket_size": c.bucket_size,
        "layer_min_size": c.layer_min_size,
        "algorithm": c.algorithm,
        "rounding": "stochastic" if c.stochastic else "nearest",
        "error_feedback": c.error_feedback,
    }


def choose_device(config: Config, say: process.Say) -> int | None:
    """Selects this rank's GPU: its index, None for the CPU. Loads the extension module, so it comes after set_threads.

    The ranks of a machine take its GPUs in turn, from data.gpu on.
    """
    wish, first = config.training.device, config.data.gpu
    try:
        count = device.check(wish)
    except UserError as error:
        origin = config.origin("training.device")
        raise UserError(
            f"training.device = gpu ({origin}): {error}; or use --training.device=cpu (cgxffcv doctor says more)"
        ) from None
    if count == 0:
        reason = device.unused()
        if reason and wish == "auto":
            say(f"note: training on the CPU, though there seems to be a GPU: {reason}")
        _check_precision_of_cpu(config)
        return None
    try:
        index = device.choose(wish, first, process.local_rank())
    except UserError as error:
        origin = config.origin("data.gpu")
        raise UserError(f"data.gpu = {first} ({origin}): {error}; or use --training.device=cpu") from None
    if process.local_ranks() > count:
        say(f"note: {process.local_ranks()} ranks share {wording.counted(count, 'GPU')}: one rank per GPU is faster")
    return index


def _check_precision_of_cpu(config: Config) -> None:
    if config.training.precision == "float16":
        raise UserError(
            f"training.precision = float16 ({config.origin('training.precision')}): only GPUs support it; here it "
            "can be auto, float32 or bfloat16"
        )


def refuse_unread_folder(config: Config) -> None:
    """ConfigError if a folder of the user's images is named that data.source does not read."""
    for key in ("data.folder", "data.val_folder"):
        if config[key] is not None and config.data.source != "folder":
            raise ConfigError(
                [
                    f"{key} = {config[key]} ({config.origin(key)}) is read with data.source = folder only, but that is "
                    f"{config.data.source} ({config.origin('data.source')}): add --data.source=folder"
                ]
            )


def check_files(config: Config) -> None:
    """Checks that the two .beton files exist, else says which command writes them; and that they are not the same
    file."""
    for key in ("data.train_dataset", "data.val_dataset"):
        path = config[key]
        if not os.path.exists(path):
            raise UserError(
                f"{path}: no such file ({key}, {config.origin(key)}). Write the .beton files first, with the same "
                "--config-file and data options: cgxffcv write (in a checkout: python write_datasets.py); or train on "
                "images of your own: --data.source=folder --data.folder=DIR; or on the sample that ships with cgxffcv: "
                "--data.source=sample"
            )
    train, test = (config[key] for key in ("data.train_dataset", "data.val_dataset"))
    if os.path.samefile(train, test):
        raise UserError(
            f"{test} is also the training set (data.val_dataset, {config.origin('data.val_dataset')}; "
            f"data.train_dataset, {config.origin('data.train_dataset')}): the accuracy on images that were trained on "
            "says nothing about others; name the test set's file"
        )


def make_files(config: Config) -> None:
    """Makes the .beton files of a folder of images, or of the sample, if data.source says so, and chooses a recipe for
    the sample if none is named; to be called after set_threads, like look_at_images."""
    if config.data.source == "folder":
        from cgxffcv.app.image_folder import prepare

        prepare(config, process.say_here)
    elif config.data.source == "sample":
        from cgxffcv.app import shipped

        shipped.prepare(config)
        shipped.suit_cpu(config)
    check_files(config)


def look_at_images(config: Config, threads: int) -> ImageFacts:
    """What the data sets hold; loads the extension module, so it comes after set_threads."""
    from cgxffcv.train.facts import look_at

    d = config.data
    return look_at(d.train_dataset, d.val_dataset, workers=loader_threads(config, threads))


def trained_on(config: Config) -> str | None:
    """What to say on rank 0 if the test set contains images of the training set; None if it seems not to."""
    if process.rank() != 0:
        return None
    from cgxffcv.app.overlap import shared_images

    found, tested = shared_images(config.data.train_dataset, config.data.val_dataset)
    if found * 10 <= tested:  # many data sets have a few duplicates
        return None
    return (
        f"WARNING: {found} of {tested} images of the test set that were looked up are also in the training set: the "
        "test accuracy says little about other images"
    )


def lock_folder(config: Config, say: process.Say) -> contextlib.AbstractContextManager[object]:
    """Keeps other runs out of the log folder until this one ends; the ranks of a job share it, so rank 0 does it."""
    return contextlib.nullcontext() if process.rank() != 0 else FolderLock(Path(config.log.dir), say)


def set_threads(say: process.Say) -> int:
    """Gives oneDNN's threads this rank's share of the cores, unless OMP_NUM_THREADS says otherwise; returns the number.

    Must come before the extension module is loaded. Says so if mpirun left this rank fewer cores than its share.
    """
    cores = process.cores_of_this_rank()
    fair = max((os.cpu_count() or 1) // process.local_ranks(), 1)
    if cores < fair and process.ranks() > 1:
        say(
            f"note: mpirun bound each rank to {cores} of this machine's {os.cpu_count()} cores, but each could have "
            f"{fair}: add --bind-to none to mpirun, or use cgxffcv launch"
        )
    os.environ.setdefault("OMP_NUM_THREADS", str(cores))
    threads = os.environ["OMP_NUM_THREADS"]
    return int(threads) if threads.isdecimal() and int(threads) > 0 else cores


def loader_threads(config: Config, cores: int) -> int:
    return config.training.num_workers if config.training.num_workers > 0 else min(cores, MOST_THREADS)


def checkpoint_to_resume(config: Config) -> Path | None:
    """The file that --resume names, last.safetensors in the folder that it names or in log.dir; None without it."""
    wish = config.training.resume
    if wish is None:
        return None
    path = Path(config.log.dir if wish == "auto" else wish)
    if path.is_dir() or wish == "auto":
        path = path / "last.safetensors"
    if not path.is_file():
        raise UserError(
            f"--resume: {path} does not exist. Start without --resume, or name a checkpoint or a log folder"
        )
    return path
