"""Recipes as data: the published numbers, overriding, refusals."""

import json

import pytest

from cgxffcv import recipes


def test_the_default_is_ffcv_with_a_shared_batch_and_fewer_epochs():
    ffcv, default = (recipes.get(name).as_dict() for name in ("ffcv", "resnet9"))
    assert {name: value for name, value in default.items() if value != ffcv[name]} == {
        "name": "resnet9",
        "summary": default["summary"],
        "batch_scope": "global",
        "epochs": 20,
    }
    assert "93.2 % on two" in ffcv["summary"]


def test_a_shorter_triangle_has_its_peak_earlier():
    resnet9 = recipes.get("resnet9")
    assert [resnet9.replace(epochs=n).lr_peak_epoch for n in (2, 16, "20", 40)] == [0.5, 4, 5, 5]
    assert resnet9.replace(epochs=2, lr_peak_epoch=5).lr_peak_epoch == 5
    assert recipes.get("demo").replace(epochs=2).lr_peak_epoch == 5
    assert recipes.get("demo").replace(schedule="triangle", epochs=2).lr_peak_epoch == 0.5


def test_names_and_lookup():
    assert {"demo", "ffcv", "resnet18", "airbench93", "airbench94", "airbench95", "airbench96"} <= set(recipes.names())
    assert all(recipes.get(name).name == name for name in recipes.names())
    with pytest.raises(ValueError, match="no recipe 'airbensh94'; did you mean airbench94"):
        recipes.get("airbensh94")


def test_published_numbers():
    demo, ffcv, a94 = (recipes.get(name) for name in ("demo", "ffcv", "airbench94"))
    assert (demo.batch_size, demo.epochs, demo.lr, demo.weight_decay, demo.cutout) == (256, 20, 0.1, 1e-4, 8)
    assert (ffcv.batch_size, ffcv.epochs, ffcv.lr, ffcv.weight_decay, ffcv.label_smoothing) == (512, 24, 0.5, 5e-4, 0.1)
    assert (a94.batch_size, a94.epochs, a94.lr, a94.momentum, a94.sgd_momentum) == (2000, 8, 0.24, 0.6, 0.85)
    assert a94.widths == (64, 256, 256)
    r18 = recipes.get("resnet18")
    assert (r18.widths, r18.batch_size, r18.epochs, r18.lr) == ((64, 128, 256, 512), 256, 30, 0.2)
    assert (r18.momentum, r18.nesterov, r18.weight_decay, r18.decay_on) == (0.9, True, 5e-4, "weights")
    for name, recipe in recipes.RECIPES.items():
        assert sum(view.weight for view in recipe.views) == pytest.approx(1), name
        assert json.loads(json.dumps(recipe.as_dict())) == recipe.as_dict()


def test_replace_converts_and_checks():
    demo = recipes.get("demo")
    changed = demo.replace(lr="0.2", epochs=3, lr_tta=True, resolutions=[[0, 20], [0.5, 32]])
    assert (changed.lr, changed.epochs, changed.test_views) == (0.2, 3.0, "mirror")
    assert changed.resolutions == ((0.0, 20), (0.5, 32))
    assert recipes.get("airbench94").replace(lr_tta=True).test_views == "six"
    assert recipes.get("airbench94").replace(lr_tta=False).test_views == "plain"
    assert demo == recipes.get("demo")


def test_a_recipe_survives_json():
    for recipe in recipes.RECIPES.values():
        assert recipes.Recipe(**json.loads(json.dumps(recipe.as_dict()))) == recipe


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"weigth_decay": 1}, "no field 'weigth_decay'; did you mean weight_decay"),
        ({"batch_size": 0}, "batch_size = 0: expected at least 1"),
        ({"batch_size": 2.5}, "batch_size = 2.5: expected a whole number"),
        ({"epochs": 0}, "epochs = 0.0: expected more than 0"),
        ({"lr": float("nan")}, "lr = nan: expected a number"),
        ({"momentum": 1}, "momentum = 1.0: expected 0 or more, below 1"),
        ({"norm_momentum": 1e-9}, "norm_momentum = 1e-09: expected at least a millionth, at most 1"),
        ({"flip": "sometimes"}, "flip = 'sometimes': expected one of none, random, alternating"),
        ({"loss_sum": "perhaps"}, "loss_sum = 'perhaps': expected true or false"),
        ({"resolutions": ((0.1, 32),)}, "the first with share 0"),
        ({"resolutions": ((0.0, 20),)}, "32 pixels at the end"),
        ({"resolutions": "low"}, "resolutions = 'low': expected"),
        ({"mean": (1,)}, "mean = .*: expected three numbers"),
        ({"std": (1, 2, 0)}, "std = .*: expected three positive numbers"),
        ({"cutout_fill": (1, 2, 256)}, "cutout_fill = .*: expected three numbers from 0 to 255"),
        ({"whiten_images": 0}, "whiten_images = 0: expected at least 1"),
        ({"network": "resnet18"}, r"widths = \(\): expected four numbers of channels"),
        ({"decay_on": "biases"}, "decay_on = 'biases': expected one of all, weights"),
        ({"optimizer": "muon"}, "optimizer = 'muon': expected sgd for this network"),
    ],
)
def test_refusals(changes, message):
    with pytest.raises(ValueError, match=message):
        recipes.get("demo").replace(**changes)


@pytest.mark.parametrize("changes", [{"decay_on": "weights"}, {"nesterov": True}])
def test_what_only_sgd_has_is_refused_elsewhere(changes):
    assert recipes.get("demo").replace(**changes) != recipes.get("demo")
    with pytest.raises(recipes.RecipeError, match=f"{next(iter(changes))} = .*: expected .* for this optimizer"):
        recipes.get("airbench94").replace(**changes)


def test_local_batch():
    demo, a94 = recipes.get("demo"), recipes.get("airbench94")
    assert demo.local_batch(3) == 256
    assert a94.local_batch(4) == 500
    for ranks, remedy in [
        (
            3,
            r"that divides it \(1, 2, 4, 5, 8, 10, 16, 20, \.\.\.\), or use batch_size=1998 or 2001$",
        ),
        (48, r"\(8, 10, 16, 20, 25, 40, 50, 80, \.\.\.\), or use batch_size=1968 or 2016$"),
        (2001, r"\(100, 125, 200, 250, 400, 500, 1000, 2000, \.\.\.\), or use batch_size=2001$"),
    ]:
        with pytest.raises(
            recipes.RecipeError, match=f"2000 images cannot be shared evenly by {ranks} processes; .*{remedy}"
        ):
            a94.local_batch(ranks)
        fits = [n for n in range(1, 2001) if 2000 % n == 0]
        assert all(a94.local_batch(n) * n == 2000 for n in fits)
    with pytest.raises(recipes.RecipeError, match=r"\(1, 7\), or use batch_size=6 or 9$"):
        a94.replace(batch_size=7).local_batch(3)
