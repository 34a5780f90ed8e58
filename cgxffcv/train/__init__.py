"""Training: the trainer, its optimizers, schedules and checkpoints."""

from cgxffcv.train.facts import ImageFacts, fitted, look_at
from cgxffcv.train.interface import EpochReport, EvaluationReport, StepReport
from cgxffcv.train.optim import Muon, Optimizer, Rate, Sgd, patch_moments, whitening_filters
from cgxffcv.train.plan import TrainingPlan, make_plan
from cgxffcv.train.trainer import Compression, Trainer, TrainingDiverged

__all__ = [
    "Compression",
    "EpochReport",
    "EvaluationReport",
    "ImageFacts",
    "Muon",
    "Optimizer",
    "Rate",
    "Sgd",
    "StepReport",
    "Trainer",
    "TrainingDiverged",
    "TrainingPlan",
    "fitted",
    "look_at",
    "make_plan",
    "patch_moments",
    "whitening_filters",
]
