"""cgxffcv.interop.torch.Loader in Lightning's own Trainer: one process and two, and a training that is resumed."""

import json

import pytest
from checkout import run_python
from loader_data import N, write_plain

pytest.importorskip("torch", reason="needs PyTorch: make test-torch")
pytest.importorskip("lightning", reason="needs Lightning: pip install lightning")
pytestmark = pytest.mark.torch

BATCH = 10
# Prints each training batch's epoch and labels (which number the samples), those that were tested, the last weight.
SCRIPT = """
import json, sys, lightning, torch
from lightning.pytorch.callbacks import ModelCheckpoint
from cgxffcv.interop.torch import Loader
from cgxffcv.loader import OrderOption
path, folder, devices, checkpoint = sys.argv[1:]

class Module(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.weight, self.epochs, self.tested = torch.nn.Parameter(torch.zeros(1)), [], []
    def training_step(self, batch, number):
        self.epochs.append([self.current_epoch, *batch[1].flatten().tolist()])
        return (self.weight - batch[1].float().mean()).square().sum()
    def validation_step(self, batch, number):
        self.tested += batch[1].flatten().tolist()
    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1e-3)

training = Loader(path, BATCH, order=OrderOption.RANDOM, seed=3, num_workers=1)
test = Loader(path, BATCH, drop_last=False, evaluate=True, num_workers=1)
keep = ModelCheckpoint(folder, every_n_train_steps=3, save_top_k=-1, filename="{step}")
quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "num_sanity_val_steps": 0}
trainer = lightning.Trainer(max_epochs=2, devices=int(devices), accelerator="cpu", callbacks=[keep], **quiet)
module = Module()
trainer.fit(module, training, test, ckpt_path=checkpoint or None)
told = {"epochs": module.epochs, "tested": module.tested, "weight": module.weight.item()}
open(f"{folder}/told-{trainer.global_rank}.json", "w").write(json.dumps(told))
""".replace("BATCH", str(BATCH))


def train(path, folder, devices=1, checkpoint=""):
    folder.mkdir()
    command = ["-W", "ignore", "-c", SCRIPT, path, folder, devices, checkpoint]
    if devices > 1:  # Lightning starts the program's file again for each rank
        (folder / "script.py").write_text(SCRIPT)
        command[2:4] = [folder / "script.py"]
    run_python(*command, limit=500, OMP_NUM_THREADS=1)
    return [json.loads((folder / f"told-{rank}.json").read_text()) for rank in range(devices)]


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return str(write_plain(tmp_path_factory.mktemp("lightning")))


def test_a_training_that_goes_on_within_an_epoch(path, tmp_path):
    (whole,) = train(path, tmp_path / "whole")
    steps = N // BATCH
    assert [epoch for epoch, *_ in whole["epochs"]] == [0] * steps + [1] * steps
    assert sorted(whole["tested"]) == sorted([*range(N), *range(N)])
    first, second = (sum((ids for e, *ids in whole["epochs"] if e == epoch), []) for epoch in (0, 1))
    assert len(set(first)) == len(set(second)) == steps * BATCH and first != second
    within = next(step for step in range(steps + 1, 2 * steps) if step % 3 == 0)
    (rest,) = train(path, tmp_path / "rest", checkpoint=tmp_path / "whole" / f"step={within}.ckpt")
    assert rest["epochs"] == whole["epochs"][within:] and rest["weight"] == whole["weight"]


def test_two_processes_share_each_epoch(path, tmp_path):
    ranks = train(path, tmp_path / "two", devices=2)
    for epoch in (0, 1):
        taken = [[number for e, *ids in rank["epochs"] if e == epoch for number in ids] for rank in ranks]
        assert len(taken[0]) == len(taken[1]) and not set(taken[0]) & set(taken[1])
        assert len(taken[0]) >= N // 2 // BATCH * BATCH
    assert sorted(ranks[0]["tested"] + ranks[1]["tested"]) == sorted([*range(N), *range(N)])
    assert ranks[0]["weight"] == ranks[1]["weight"]
