"""Steps, schedules and groups of the recipes against their published formulas."""

import math

import numpy as np
import pytest

from cgxffcv import recipes
from cgxffcv.train.plan import BIAS, FILTERS, LINEAR, NORM_BIAS, NORM_SCALE, image_flops, make_plan, training_flops


def factor(group, t):
    """The group's rate in step t; numpy.interp if no two points share a step."""
    steps, factors = zip(*group.points, strict=True)
    return group.base * float(np.interp(t, steps, factors))


def group_of(plan, kind, block):
    found = [g for g in plan.groups if kind in g.kinds and g.blocks[0] <= block < g.blocks[1]]
    assert len(found) == 1, (kind, block)
    return found[0]


def test_ffcv_triangle():
    plan = make_plan(recipes.get("ffcv"), 50_000)
    assert (plan.steps_per_epoch, plan.steps, plan.epochs, plan.global_batch) == (97, 2328, 24, 512)
    (group,) = plan.groups
    for t in (0, 1, 484, 485, 486, 1000, 2327):
        assert factor(group, t) == pytest.approx(0.5 * min(t / 485, (2328 - t) / 1843), rel=1e-12, abs=1e-15)
    assert (group.rule.momentum, group.rule.decay, group.rule.nesterov) == (0.9, 5e-4, False)


@pytest.mark.parametrize("ranks", [1, 2, 8])
def test_resnet9_is_ffcv_in_20_epochs_with_one_batch_for_all(ranks):
    plan = make_plan(recipes.get("resnet9"), 50_000, ranks)
    assert (plan.steps, plan.global_batch, plan.local_batch) == (20 * 97, 512, 512 // ranks)
    (group,) = plan.groups
    for t in (0, 1, 485, 486, 1000, 1939):
        assert factor(group, t) == pytest.approx(0.5 * min(t / 485, (1940 - t) / 1455), rel=1e-12, abs=1e-15)


@pytest.mark.parametrize(
    "name, samples, ranks, message",
    [
        ("resnet9", 250, 1, r"a step takes 512 images, .* only 250; make .* \(batch_size=250 at most\) or"),
        ("resnet9", 250, 4, r"4 processes with 128 images each, .* only 250; .*batch_size=248 at most\)"),
        ("demo", 300, 2, r"2 processes with 256 images each, .* only 300; .*batch_size=150 at most\)"),
        ("demo", 3, 4, "only 3; start fewer processes or make the data set larger"),
    ],
)
def test_a_data_set_that_is_smaller_than_a_batch(name, samples, ranks, message):
    with pytest.raises(ValueError, match=message):
        make_plan(recipes.get(name), samples, ranks)


@pytest.mark.parametrize("ranks", [1, 2, 8])
def test_resnet18_decays_weights_only(ranks):
    plan = make_plan(recipes.get("resnet18"), 50_000, ranks)
    assert (plan.steps, plan.global_batch, plan.local_batch) == (30 * 195, 256, 256 // ranks)
    for kind, decay in ((FILTERS, 5e-4), (LINEAR, 5e-4), (BIAS, 0), (NORM_SCALE, 0), (NORM_BIAS, 0)):
        group = group_of(plan, kind, 1)
        assert (group.rule.momentum, group.rule.decay, group.rule.nesterov) == (0.9, decay, True)
        for t in (0, 1, 1170, 1171, 3000, 5849):
            assert factor(group, t) == pytest.approx(0.2 * min(t / 1170, (5850 - t) / 4680), rel=1e-12, abs=1e-15)
    airbench = make_plan(recipes.get("airbench94").replace(optimizer="sgd", decay_on="weights"), 50_000)
    for block in (1, 2, 3):
        decays = [group_of(airbench, kind, block).rule.decay for kind in (FILTERS, LINEAR, NORM_BIAS)]
        assert decays == [0.004, 0.004, 0.0]
    assert group_of(airbench, BIAS, 0).rule.decay == 0


def test_demo_is_constant_in_its_20_epochs():
    plan = make_plan(recipes.get("demo"), 50_000, 4)
    assert (plan.local_batch, plan.global_batch, plan.steps_per_epoch, plan.steps) == (256, 1024, 48, 960)
    (group,) = plan.groups
    assert [factor(group, t) for t in (0, 500, 959)] == [0.1] * 3
    assert group.points == (
        (0, 1.0),
        (2880, 1.0),
        (2880, 0.2),
        (5760, 0.2),
        (5760, pytest.approx(0.04)),
        (7680, pytest.approx(0.04)),
        (7680, pytest.approx(0.008)),
    )


@pytest.mark.parametrize("ranks", [1, 2, 8])
def test_airbench94(ranks):
    plan = make_plan(recipes.get("airbench94"), 50_000, ranks)
    assert (plan.steps_per_epoch, plan.steps, plan.global_batch, plan.local_batch) == (25, 200, 2000, 2000 // ranks)
    for block in (1, 2, 3):
        muon = group_of(plan, FILTERS, block)
        assert (muon.rule.momentum, muon.rule.iterations, muon.rule.decay) == (0.6, 3, 0)
        bias = group_of(plan, NORM_BIAS, block)
        assert bias.rule.decay == pytest.approx(0.075472, rel=1e-5)
        for t in (0, 1, 77, 199):
            assert factor(muon, t) == pytest.approx(0.24 * (1 - t / 200), rel=1e-12)
            assert factor(bias, t) == pytest.approx(0.053 * (1 - t / 200), rel=1e-12)
        assert muon.steps == (0, 200)
    head = group_of(plan, LINEAR, 3)
    assert head.rule.decay == pytest.approx(0.0059701, rel=1e-5)
    assert factor(head, 100) == pytest.approx(0.335)
    white = group_of(plan, BIAS, 0)
    assert white.steps == (0, 75)
    assert factor(white, 30) == pytest.approx(0.053 * (1 - 30 / 75))
    assert [(p.first_step, p.side, p.first_block) for p in plan.phases] == [(0, 32, 0), (75, 32, 1)]


def test_older_airbench():
    plan = make_plan(recipes.get("airbench93"), 50_000)
    assert (plan.steps_per_epoch, plan.steps, plan.lookahead_every) == (48, 528, 5)
    k = 1024 * (1 + 1 / 0.15)
    assert k == pytest.approx(7850.67, abs=0.01)
    filters, bias = group_of(plan, FILTERS, 1), group_of(plan, NORM_BIAS, 2)
    assert filters.base == pytest.approx(11.5 / k)
    assert bias.base == pytest.approx(64 * 11.5 / k)
    assert filters.rule.decay == pytest.approx(0.0153 * 1024 / k / filters.base)
    assert bias.rule.decay == pytest.approx(0.0153 * 1024 / k / bias.base)
    peak = int(0.23 * 528)
    assert factor(filters, 0) / filters.base == pytest.approx(0.2)
    assert factor(filters, peak) / filters.base == pytest.approx(1)
    assert factor(filters, 528) / filters.base == pytest.approx(0.07)
    assert group_of(plan, BIAS, 0).steps == (0, 144)
    assert make_plan(recipes.get("airbench94_sgd"), 50_000).steps == math.ceil(9.9 * 48)


def test_savers():
    recipe = recipes.get("airbench94").replace(
        resolutions=((0, 20), (0.2, 28), (0.5, 32)), freeze_block1_share=0.2, whiten_bias_epochs=1
    )
    plan = make_plan(recipe, 50_000)
    assert [(p.first_step, p.side, p.first_block) for p in plan.phases] == [
        (0, 20, 0),
        (25, 20, 1),
        (40, 28, 1),
        (100, 32, 1),
        (160, 32, 2),
    ]
    assert group_of(plan, FILTERS, 1).steps == (0, 160)
    assert group_of(plan, FILTERS, 2).steps == (0, 200)
    never = make_plan(recipe.replace(whiten_bias_epochs=0), 50_000)
    assert never.phases[0].first_block == 1


def test_airbench94_fast():
    plan = make_plan(recipes.get("airbench94_fast"), 50_000)
    assert (plan.steps_per_epoch, plan.steps, plan.global_batch) == (32, 8 * 32, 1536)
    assert plan.epoch_starts == (0, 32, 64, 96, 128, 144, 160, 176, 192, 208, 224, 240)
    assert plan.fractions == (1,) * 4 + (0.5,) * 8
    assert [(p.first_step, p.side, p.first_block) for p in plan.phases] == [
        (0, 24, 0),
        (32, 24, 1),
        (102, 32, 1),
    ]


def relative(group, t):
    return factor(group, t) / group.base


def filters_of_blocks_1_and_3(name, share):
    plan = make_plan(recipes.get(name).replace(freeze_block1_share=share), 50_000)
    first, last = group_of(plan, FILTERS, 1), group_of(plan, FILTERS, 3)
    assert group_of(plan, NORM_BIAS, 1).points == first.points and group_of(plan, NORM_BIAS, 3).points == last.points
    assert group_of(plan, LINEAR, 3).points == last.points
    assert (first.base, last.steps) == (last.base, (0, plan.steps))
    return first, last


def test_the_schedule_of_a_block_ends_when_it_is_frozen():
    first, last = filters_of_blocks_1_and_3("airbench94", 0.25)  # of 200 steps
    assert first.steps == (0, 150)
    assert [relative(first, t) for t in (0, 75, 150)] == [1, 0.5, 0]
    assert relative(first, 149) == pytest.approx(1 / 150, rel=1e-12)
    assert [relative(last, t) for t in (0, 75, 150, 200)] == [1, 0.625, 0.25, 0]


def test_the_schedule_of_a_frozen_block_warms_up_sooner():
    first, last = filters_of_blocks_1_and_3("airbench93", 0.5)  # of 528 steps, 121 to warm up
    assert first.steps == (0, 264)
    assert last.points == ((0, 0.2), (121, 1.0), (528, 0.07))
    assert [relative(first, t) for t in (0, 60.5, 264)] == [0.2, 1, pytest.approx(0.07)]
    assert relative(first, 132) == pytest.approx(1 - 0.93 * (132 - 60.5) / (264 - 60.5), rel=1e-12)
    assert relative(last, 132) == pytest.approx(1 - 0.93 * (132 - 121) / (528 - 121), rel=1e-12)


def test_frozen_blocks_and_the_other_schedules():
    first, last = filters_of_blocks_1_and_3("airbench94", 0)
    assert first.points is last.points and first.points == ((0, 1.0), (200, 0.0)) and first.steps == (0, 200)
    first, last = filters_of_blocks_1_and_3("airbench94", 0.002)  # less than half a step
    assert first.points is last.points and first.steps == (0, 200)
    first, _ = filters_of_blocks_1_and_3("airbench94", 0.999)  # all steps
    assert first.points == ((0, 1.0), (0, 0.0)) and first.steps == (0, 0)
    base = recipes.get("airbench94").replace(freeze_block1_share=0.25)
    triangle = base.replace(schedule="triangle", lr_peak_epoch=2)
    assert group_of(make_plan(triangle, 50_000), FILTERS, 1).points == ((0, 0), (37.5, 1), (150, 0))
    drops = base.replace(schedule="steps", lr_drop_epochs=(4,))
    assert group_of(make_plan(drops, 50_000), FILTERS, 1).points == ((0, 1), (75, 1), (75, 0.2))
    constant = base.replace(schedule="constant")
    assert group_of(make_plan(constant, 50_000), FILTERS, 1).points == ((0, 1.0),)


def test_partial_epochs():
    plan = make_plan(recipes.get("airbench94").replace(epochs=2.5, batch_size=1000), 10_000)
    assert (plan.steps, plan.epochs) == (25, 3)
    assert plan.epoch_starts == (0, 10, 20) and plan.fractions == (1, 1, 1)
    assert [plan.epoch_end(e) for e in range(3)] == [10, 20, 25]
    assert [plan.epoch_of(s) for s in (0, 9, 10, 24)] == [0, 0, 1, 2]


def test_passes_over_the_hardest_images():
    recipe = recipes.get("airbench90").replace(epochs=5.03)
    plan = make_plan(recipe, 50_000)
    assert plan.steps == 503
    assert plan.epoch_starts == (0, 100, 170, 240, 280, 320, 360, 400, 440, 480)
    assert plan.fractions == (1, 0.7, 0.7, 0.4, 0.4, 0.4, 0.4, 0.4, 0.4, 0.4)
    assert plan.epoch_end(9) == 503 and plan.epoch_of(502) == 9
    assert make_plan(recipe, 50_000, 2).epoch_starts == plan.epoch_starts
    with pytest.raises(ValueError, match="0.7 of 600 images are fewer than one batch of 500"):
        make_plan(recipe, 600)


def test_operations():
    """Against the tables of the recipes' sources, and the published totals."""
    resnet = recipes.get("demo")
    assert image_flops(resnet)[0] == pytest.approx(0.583e9, rel=1e-3)
    assert image_flops(resnet)[1] == pytest.approx(1.744e9, rel=1e-3)
    wide = recipes.get("airbench94")
    forward, all_blocks = image_flops(wide)
    macs = [0.277, 13.285, 8.294, 33.178, 28.901, 28.901, 5.308, 0.003]
    assert forward == pytest.approx(2e6 * sum(macs), rel=1e-4)
    assert all_blocks == pytest.approx(2e6 * (3 * sum(macs) - 2 * macs[0]), rel=1e-4)
    assert image_flops(wide, 32, 1)[1] == pytest.approx(all_blocks - 2e6 * macs[1], rel=1e-4)
    assert image_flops(wide, 32, 2)[1] == pytest.approx(
        all_blocks - 2e6 * (2 * (macs[1] + macs[2]) + macs[3]), rel=1e-4
    )
    narrow = recipes.get("airbench90")
    for side, megaflops in ((16, 24.2), (24, 64.2), (32, 123.7)):
        assert image_flops(narrow, side, 1)[1] == pytest.approx(1e6 * megaflops, rel=5e-3)
    assert training_flops(narrow.replace(epochs=5.03), 50_000) == pytest.approx(17.6e12, rel=5e-3)


@pytest.mark.parametrize("name, ranks", [("demo", 4), ("airbench94", 1)])
def test_batch_larger_than_the_data(name, ranks):
    with pytest.raises(ValueError, match="the training set has only 999; make the batch smaller"):
        make_plan(recipes.get(name), 999, ranks)
