from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from retort.engine.parameters import constrain, constrained_layers
from retort.nn.tdnnf import TdnnfConfig, TdnnfLayer, nearer_orthogonal
from retort.nn.zipformer import Bypass
from two_processes import results_of, run_in_two

CONFIG = TdnnfConfig(dim=6, bottleneck=4, pool_after=[])


def make_layers() -> torch.nn.Sequential:
    """Two layers whose bottlenecks have gone astray, and three bypasses that have."""
    torch.manual_seed(0)
    layers = torch.nn.Sequential(
        TdnnfLayer(CONFIG, 1), TdnnfLayer(CONFIG, 2), Bypass(6, 3), Bypass(6), Bypass(6, 4)
    )
    with torch.no_grad():
        for parameter in layers.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape))
        for number in (2, 3, 4):
            layers[number].get_parameter("weight").copy_(torch.tensor([-1.0, 0.1, 0.2, 0.6, 1.0, 1.5]))
    return layers


def test_it_moves_constrained_layers_that_learn_and_nothing_else() -> None:
    layers = make_layers()
    frozen = layers[1].get_submodule("bottleneck")
    frozen.requires_grad_(False)
    layers[3].requires_grad_(False)
    before = {name: value.clone() for name, value in layers.state_dict().items()}
    constrain(constrained_layers(layers), 3)
    for name, value in layers.state_dict().items():
        moved = nearer_orthogonal(before[name]) if name == "0.bottleneck.weight" else before[name]
        if name in ("2.weight", "4.weight"):  # the last is kept straight for one update more
            least = 0.2 if name == "2.weight" else 0.9
            moved = before[name].clamp(least, 1.0)
        assert torch.equal(value, moved)
    assert not torch.equal(layers.state_dict()["0.bottleneck.weight"], before["0.bottleneck.weight"])


def constrain_divided(process: int) -> dict[str, Any]:
    dist.init_process_group("gloo")
    layers = make_layers()
    fully_shard(layers, mesh=dist.init_device_mesh("cpu", (2,)))
    constrain(constrained_layers(layers), 3)
    weights = layers.state_dict()
    assert all(isinstance(each, DTensor) for each in weights.values())
    return {name: each.full_tensor() for name, each in weights.items()}


def test_weights_divided_among_processes_go_the_same_way(tmp_path: Path) -> None:
    run_in_two(tmp_path, {"divided": (constrain_divided,)})
    layers = make_layers()
    constrain(constrained_layers(layers), 3)
    for found in results_of(tmp_path, "divided"):
        for name, value in layers.state_dict().items():
            torch.testing.assert_close(found[name], value, rtol=1e-6, atol=1e-7)
