"""What tests of trainers share: training to the end, and comparing two states."""

import numpy as np


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
            assert value.tobytes() == b[name].tobytes(), name
        else:
            assert value == b[name], name
