"""Plans that fit together, times that are read off right, and a small run from end to end that can be repeated."""

import csv
import json
import math
from dataclasses import replace

import pytest

from molrmog.experiments import hybrid_page, hybrid_plans
from molrmog.experiments.hybrid import run_hybrid
from molrmog.experiments.hybrid_page import evaluations_saved, reached
from molrmog.experiments.hybrid_plans import BUDGETS, DATASETS, Arm, plan

TINY = replace(
    hybrid_plans._SMOKE,
    rows=120,
    bases={
        "law": {"kind": "law", "labels": True, "latent_dim": 4, "modes": 1, "max_iter": 2},
        "patches": {
            "kind": "patches",
            "size": 4,
            "stride": 4,
            "top": 2,
            "patches": 200,
            "latent_dim": 4,
            "modes": 2,
            "max_iter": 2,
        },
        "blend": {"kind": "blend", "parts": ("law", "patches")},
    },
    arms={
        "plain": Arm(),
        "law": Arm("law"),
        "blend": Arm("blend", added=0.0),
        "plain, faster": Arm(tunes=True, training={"warmup": 1}),
    },
    unet={"channels": (8,), "attention": False},
    training={**hybrid_plans._TRAINING, "steps": 4, "batch_size": 16, "ema_decay": 0.5, "warmup": 2},
    marks_aside=(0.5, 1),
    samples=20,
    sampler_steps=2,
    evaluations=(3,),
    tolerance=10.0,
)


@pytest.mark.parametrize("dataset", DATASETS)
@pytest.mark.parametrize("budget", BUDGETS)
def test_every_plan_names_bases_that_it_makes(dataset, budget):
    made = plan(dataset, budget)
    assert {arm.base for arm in made.arms.values()} - {None} <= set(made.bases)
    for name, base in made.bases.items():
        assert set(base.get("parts", ())) <= set(list(made.bases)[: list(made.bases).index(name)])
    assert {"plain", "law"} <= set(made.arms)
    steps = made.training["steps"]
    assert all(float(steps * share).is_integer() for share in made.marks)


def test_an_unknown_plan_says_what_there_is():
    with pytest.raises(ValueError, match="choose among mnist"):
        plan("mnst", "cpu")


def test_other_steps_compare_plain_and_law_alone():
    made = plan("mnist", "cpu", steps=3200)
    assert (list(made.arms), list(made.bases), made.evaluations) == (["plain", "law"], ["law"], ())
    assert list(plan("mnist", "cpu", rows=1000).arms) == ["plain", "law"]
    assert (made.training["steps"], plan("mnist", "cpu", rows=1000, steps=800).training["steps"]) == (3200, 800)
    assert plan("mnist", "smoke", steps=16).training["steps"] == 16
    assert [plan("mnist", budget, seeds=2).seeds for budget in ("smoke", "cpu")] == [(0, 1), (0, 1)]


@pytest.mark.parametrize("steps", [0, 24, -16])
def test_steps_that_marks_do_not_divide_are_refused(steps):
    with pytest.raises(ValueError, match="multiple of 16"):
        plan("mnist", "cpu", steps=steps)


def test_no_seed_is_refused():
    with pytest.raises(ValueError, match="--seeds 0: pass 1 or more"):
        plan("mnist", "cpu", seeds=0)


def table(path):
    return list(csv.DictReader(path.read_text().splitlines()))


def marks(*pairs):
    return [{"spent": spent, "Fréchet": value} for spent, value in pairs]


@pytest.mark.parametrize(
    ("measured", "seconds"),
    [
        (marks((1.0, 8.0), (4.0, 2.0)), 2.0),  # half way in both logarithms
        (marks((1.0, 3.0), (4.0, 2.0)), 1.0),  # before the first mark: no sooner than it
        (marks((1.0, 8.0), (4.0, 5.0)), None),
        (marks((1.0, 8.0), (2.0, 9.0), (4.0, 4.0)), 4.0),
        ([*marks((1.0, 8.0)), {"spent": 2.0}, *marks((4.0, 2.0))], 2.0),
        (marks((1.0, 8.0), (1e10, -1e-3)), 1e10 ** (1 / (1 + math.log(4e9, 2)))),  # rounding below zero counts as 1e-9
    ],
)
def test_when_four_is_reached(measured, seconds):
    found = reached(measured, 4.0)
    assert found == (None if seconds is None else pytest.approx(seconds))


@pytest.mark.slow
def test_every_arm_is_drawn():
    marks = [{"spent": 1.0, "Fréchet": 8.0, "validation_loss": 2.0}, {"spent": 4.0, "Fréchet": 2.0}]
    arms = {f"arm {i}.": [{"marks": marks}] for i in range(12)}
    drawn = hybrid_page._curves(arms)[0].data.decode()
    assert all(f"<!-- {name} -->" in drawn for name in arms)


def test_what_a_jump_saves_at_equal_quality():
    few = [{"evaluations": n, "jump": None, "Fréchet": 100.0 / n} for n in (5, 10, 20)]
    few += [{"evaluations": 5, "jump": 0.7, "Fréchet": 10.0}, {"evaluations": 10, "jump": 0.7, "Fréchet": 1.0}]
    assert evaluations_saved(few) == {5: pytest.approx(0.5), 10: None}  # 10 evaluations from noise; never


@pytest.mark.slow
def test_a_run_can_be_repeated_and_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr(hybrid_plans, "_SMOKE", TINY)
    page = run_hybrid(tmp_path / "a", "digits", "smoke", workers=2)
    rows = table(tmp_path / "a" / "results.csv")
    assert [row["arm"] for row in rows] == ["plain"] * 2 + ["law"] * 2 + ["blend"] * 2 + ["plain, faster"] * 2
    assert [row["Fréchet"] == "" for row in rows] == [False] * 6 + [True, False]
    assert "Quality by training time" in page.read_text()
    for name in ("quality", "loss", "evaluations"):
        assert (tmp_path / "a" / f"{name}.svg").read_text().rstrip().endswith("</svg>")
    few = table(tmp_path / "a" / "sampling.csv")
    assert {(row["arm"], row["jump"] != "") for row in few} == {("law", True), ("law", False)}

    cell = tmp_path / "a" / "cells" / "arms" / "law" / "0" / "cell.json"
    before = json.loads(cell.read_text())["result"]
    cell.unlink()  # as if it had been stopped in the middle of its last measurement
    (cell.parent / "marks" / "4.json").unlink()
    run_hybrid(tmp_path / "a", "digits", "smoke", workers=2)
    after = json.loads(cell.read_text())["result"]
    for now, then in zip(after["marks"], before["marks"], strict=True):
        assert [now[key] for key in ("step", "validation_loss", "Fréchet")] == [
            then[key] for key in ("step", "validation_loss", "Fréchet")
        ]
