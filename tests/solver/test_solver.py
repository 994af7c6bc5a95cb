"""Optimizer groups and learning rates against the recorded ones."""
import json
import logging
import os

import pytest
import torch

from fcos_core.config import cfg as default_cfg
from fcos_core.config import load_config
from fcos_core.modeling.detector import build_detection_model
from fcos_core.solver import WarmupMultiStepLR, make_lr_scheduler, make_optimizer

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
with open(os.path.join(ROOT, "tests", "golden", "solver.json")) as stream:
    GOLDEN = json.load(stream)


def make_cfg(**solver):
    cfg = default_cfg.clone()
    for key, value in solver.items():
        cfg.SOLVER[key] = value
    return cfg


def rates(scheduler, optimizer, steps):
    seen = []
    for _ in range(steps):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return seen


@pytest.mark.parametrize("method", ["linear", "constant"])
def test_learning_rates_are_the_recorded_ones(method):
    golden = GOLDEN["lr"]
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], golden["base_lr"])
    scheduler = WarmupMultiStepLR(
        optimizer, golden["milestones"], golden["gamma"], golden["warmup_factor"], golden["warmup_iters"], method
    )
    assert rates(scheduler, optimizer, 40) == pytest.approx(golden[method], rel=1e-12)


def test_schedule_continues_from_its_state():
    cfg = make_cfg(STEPS=(6, 9), WARMUP_ITERS=4, BASE_LR=0.1)

    def build():
        model = torch.nn.Linear(2, 2)
        optimizer = make_optimizer(cfg, model)
        return optimizer, make_lr_scheduler(cfg, optimizer)

    whole = rates(*reversed(build()), steps=12)
    optimizer, scheduler = build()
    first = rates(scheduler, optimizer, 5)
    states = optimizer.state_dict(), scheduler.state_dict()
    optimizer, scheduler = build()
    optimizer.load_state_dict(states[0])
    scheduler.load_state_dict(states[1])
    assert first + rates(scheduler, optimizer, 7) == whole


@pytest.mark.parametrize("arguments, word", [({"milestones": [5, 3]}, "rising"), ({"warmup_method": "log"}, "log")])
def test_schedule_refuses_nonsense(arguments, word):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], 0.1)
    with pytest.raises(ValueError, match=word):
        WarmupMultiStepLR(optimizer, **dict({"milestones": [3, 5]}, **arguments))


@pytest.mark.parametrize("name", sorted(GOLDEN["param_groups"]))
def test_parameter_groups_are_the_recorded_ones(name):
    cfg, _ = load_config(os.path.join(ROOT, "configs", "fcos", name + ".yaml"), ["SOLVER.BASE_LR", "1e-4"])
    model = build_detection_model(cfg)
    names = {id(parameter): parameter_name for parameter_name, parameter in model.named_parameters()}
    groups = make_optimizer(cfg, model).param_groups
    assert all(len(group["params"]) == 1 and group["momentum"] == cfg.SOLVER.MOMENTUM for group in groups)
    assert [[names[id(g["params"][0])], g["lr"], g["weight_decay"]] for g in groups] == GOLDEN["param_groups"][name]


def test_offset_layers_get_their_own_factor():
    model = torch.nn.Module()
    model.conv = torch.nn.Module()
    model.conv.offset = torch.nn.Conv2d(2, 2, 1)
    model.frozen = torch.nn.Conv2d(2, 2, 1).requires_grad_(False)
    cfg = make_cfg(BASE_LR=1.0, DCONV_OFFSETS_LR_FACTOR=0.1, BIAS_LR_FACTOR=2, WEIGHT_DECAY=0.3, WEIGHT_DECAY_BIAS=0.0)
    groups = make_optimizer(cfg, model).param_groups
    assert [(g["lr"], g["weight_decay"]) for g in groups] == [(0.1, 0.3), (0.2, 0.0)]


def test_reference_batch_scales_the_rate_and_says_so(caplog):
    model = torch.nn.Linear(1, 1, bias=False)
    with caplog.at_level(logging.INFO):
        optimizer = make_optimizer(make_cfg(BASE_LR=0.01, IMS_PER_BATCH=4, REFERENCE_BATCH=16), model)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.0025)
    assert len(caplog.records) == 1 and "0.0025" in caplog.text


def test_unknown_optimizer_and_nothing_to_train():
    with pytest.raises(ValueError, match="SGD or AdamW"):
        make_optimizer(make_cfg(OPTIMIZER="LBFGS"), torch.nn.Linear(1, 1))
    with pytest.raises(ValueError, match="FREEZE_CONV_BODY_AT"):
        make_optimizer(make_cfg(), torch.nn.Linear(1, 1).requires_grad_(False))


@pytest.mark.parametrize("name, plain", [("SGD", torch.optim.SGD), ("AdamW", torch.optim.AdamW)])
def test_stepping_groups_together_changes_no_bit(name, plain):
    """The merged step against torch's own optimizer on the same groups, over some steps with two rates and decays."""
    torch.manual_seed(1)
    model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 3))
    twin = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 3))
    twin.load_state_dict(model.state_dict())
    cfg = make_cfg(OPTIMIZER=name, BASE_LR=0.01, WEIGHT_DECAY=0.1)
    merged = make_optimizer(cfg, model)
    parameters = list(twin.parameters())
    settings = [{name: group[name] for name in ("lr", "weight_decay")} for group in merged.param_groups]
    groups = [dict(setting, params=[parameter]) for setting, parameter in zip(settings, parameters)]
    separate = plain(groups, 0.01, **({"momentum": cfg.SOLVER.MOMENTUM} if name == "SGD" else {}))
    schedules = [make_lr_scheduler(cfg, merged), make_lr_scheduler(cfg, separate)]
    for _ in range(4):
        x = torch.randn(5, 4)
        for network, optimizer, schedule in zip((model, twin), (merged, separate), schedules):
            optimizer.zero_grad()
            network(x).pow(2).sum().backward()
            optimizer.step()
            schedule.step()
    assert len(merged.param_groups) == 4
    for ours, theirs in zip(model.parameters(), twin.parameters()):
        assert torch.equal(ours, theirs)
    assert merged.state_dict()["param_groups"] == separate.state_dict()["param_groups"]
