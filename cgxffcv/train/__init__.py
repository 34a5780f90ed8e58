"""Training: the trainer, its optimizers, schedules and checkpoints."""

from cgxffcv.train.interface import EpochReport, EvaluationReport, StepReport
from cgxffcv.train.optim import Muon, Optimizer, Rate, Sgd, patch_moments, whitening_filters
from cgxffcv.train.plan import TrainingPlan, make_plan
from cgxffcv.train.trainer import Compression, Trainer, TrainingDiverged

__all__ = [
    "Compression",
    "EpochReport",
    "EvaluationReport",
    "Muon",
    "Optimizer",
    "Rate",
    "Sgd",
    "StepReport",
    "Trainer",
    "TrainingDiverged",
    "TrainingPlan",
    "make_plan",
    "patch_moments",
    "whitening_filters",
]
