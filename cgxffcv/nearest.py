"""The known name that an unknown one was meant to be: one spelt almost the same, or one for the same thing."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

LONGEST = 64  # a longer name is no misspelling, and comparing takes time
CUTOFF = 0.6

# What other programs call it.
SYNONYMS = {
    "training.lr": "learning_rate learningrate max_lr peak_lr initial_lr step_size",
    "training.weight_decay": "wd l2 decay l2_penalty regularization",
    "training.batch_size": "bs batch batchsize train_batch_size minibatch_size",
    "training.val_batch_size": "test_batch_size eval_batch_size",
    "training.epochs": "num_epochs n_epochs max_epochs total_epochs",
    "training.seed": "random_seed random_state manual_seed",
    "training.device": "cuda use_cuda use_gpu",
    "training.num_workers": "workers threads num_threads n_jobs",
    "training.precision": "amp dtype fp16 bf16 half mixed_precision",
    "training.resume": "checkpoint ckpt restart resume_from load_checkpoint",
    "training.recipe": "model arch preset",
    "training.test_every": "eval_every val_every eval_interval test_interval",
    "training.label_smoothing": "smoothing",
    "training.lr_tta": "tta",
    "compression.bits": "quantization_bits num_bits nbits",
    "compression.bucket_size": "quantization_bucket_size bucket",
    "comm.backend": "dist_backend distributed_backend",
    "data.train_dataset": "train_data train_file train_path trainset",
    "data.val_dataset": "test_dataset val_data val_file val_path test_data test_file test_path testset valset",
    "data.root": "data_dir data_root data_path root_dir",
    "log.dir": "output output_dir out_dir save_dir logdir log_folder run_dir",
    "log.progress": "verbose quiet progress_bar",
    "log.interval": "log_interval log_every print_freq",
    "log.tensorboard": "tb summary_writer use_tensorboard wandb",
}


def suggest(name: str, known: Iterable[str]) -> str:
    """ "; did you mean ...?" or nothing. Case, dashes and leading dashes are ignored; a name from another section is
    near if its last part is."""
    if len(name) > LONGEST:
        return ""
    names = {_plain(key): key for key in known}
    near = _nearest(_plain(name), names)
    return f"; did you mean {near}?" if near else ""


def _plain(name: str) -> str:
    return name.lstrip("-").replace("-", "_").lower()


def _nearest(name: str, names: dict[str, str]) -> str | None:
    section, _, last = name.rpartition(".")
    by_last = {key.rpartition(".")[2]: original for key, original in reversed(names.items())}
    if name in names:
        return names[name]
    if last in by_last:
        return by_last[last]
    family = {key.rpartition(".")[2]: names[key] for key in names if section and key.rpartition(".")[0] == section}
    for word, among in (
        (last, _with_synonyms(family, names, section)),
        (name, names),
        (last, _with_synonyms(by_last, names)),
    ):
        match = difflib.get_close_matches(word, among, n=1, cutoff=CUTOFF)
        if match:
            return among[match[0]]
    return None


def _with_synonyms(by_last: dict[str, str], names: dict[str, str], section: str = "") -> dict[str, str]:
    """Maps the last parts of names, and the other words for them, to the names."""
    out = {}
    for target, words in SYNONYMS.items():
        own, _, last = target.partition(".")
        if last in by_last and section in ("", own):
            out |= dict.fromkeys(words.split(), names.get(target, by_last[last]))
    return out | by_last
