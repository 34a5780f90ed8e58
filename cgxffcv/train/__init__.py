"""Training: optimizers, schedules, the trainer and its checkpoints."""

from cgxffcv.train.optim import Muon, Optimizer, Rate, Sgd, patch_moments, whitening_filters

__all__ = ["Muon", "Optimizer", "Rate", "Sgd", "patch_moments", "whitening_filters"]
