"""Fully sharded networks (FSDP2, torch's `fully_shard`): each rank stores a shard of every weight,
of its gradient and of its optimizer state, and gathers the other shards to compute. The only file
that knows sharded tensors.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.modules.conv import _ConvNd
from torch.utils._pytree import tree_map_only

from fitcompress.errors import TrainingError
from fitcompress.training.protocols import Objective

__all__ = [
    "full_tensors",
    "load_full_state",
    "load_optimizer",
    "shard_objective",
    "sharded_modules",
]

_LEAST_PARAMETERS = 2**16
"""Parameters from which a layer is gathered on its own; smaller ones are gathered together."""
_LAYERS = (nn.Linear, nn.Embedding, _ConvNd)

State = TypeVar("State")


def shard_objective(objective: Objective, device: torch.device, world_size: int) -> Objective:
    """A copy of the objective with its networks sharded over the devices of all ranks. Collective:
    every rank must call it. The objective itself stays whole, on the CPU.

    Raises:
        TrainingError: some weights cannot be sharded.
    """
    mesh = init_device_mesh(device.type, (world_size,))
    objective.to(torch.device("cpu"))
    copy = deepcopy(objective)
    for part in copy.modules():
        for weight in part.parameters(recurse=False):
            weight.data = weight.data.contiguous()  # channels-last weights cannot be sharded
    for root in _roots(copy):
        for layer in root.modules():
            if (
                layer is not root
                and isinstance(layer, _LAYERS)
                and _num_weights(layer) >= _LEAST_PARAMETERS
            ):
                fully_shard(layer, mesh=mesh)
        fully_shard(root, mesh=mesh)
    for part in copy.modules():
        for buffer in part.buffers(recurse=False):
            buffer.data = buffer.data.to(device)
    networks = (copy.trained, *copy.networks)
    weights = {name: w for network in networks for name, w in network.named_parameters()}
    left = [name for name, weight in weights.items() if not isinstance(weight, DTensor)]
    if left:
        raise TrainingError(
            f"sharding the networks: {len(left)} weights, such as '{left[0]}', cannot be sharded",
            code="weights-unshardable",
            advice="Drop --shard.",
            weights=left,
        )
    return copy


def _roots(objective: Objective) -> Iterator[nn.Module]:
    """The outermost modules that are called."""
    yield from (net for net in objective.networks if not _holds(objective.trained, net))
    yield from _called(objective.trained)


def _called(module: nn.Module) -> Iterator[nn.Module]:
    if isinstance(module, nn.ModuleDict | nn.ModuleList):
        for child in module.children():
            yield from _called(child)
    elif next(module.parameters(), None) is not None:
        yield module


def _holds(module: nn.Module, part: nn.Module) -> bool:
    return any(own is part for own in module.modules())


def _num_weights(layer: nn.Module) -> int:
    return sum(weight.numel() for weight in layer.parameters(recurse=False))


def sharded_modules(objective: Objective) -> Sequence[FSDPModule]:
    """The sharded modules of an objective."""
    return [module for module in objective.modules() if isinstance(module, FSDPModule)]


def full_tensors(state: State) -> State:
    """The same tree with every sharded tensor gathered. Collective: every rank must call it."""
    return tree_map_only(DTensor, DTensor.full_tensor, state)  # type: ignore[no-any-return]


def load_full_state(module: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Loads an unsharded state into a module, which may be sharded."""
    own = module.state_dict()
    module.load_state_dict({name: _like(own.get(name), value) for name, value in state.items()})


def load_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Loads an unsharded state into an optimizer, whose weights may be sharded."""
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    moments = {
        index: {name: _like(weights[index], value) for name, value in own.items()}
        for index, own in state["state"].items()
    }
    optimizer.load_state_dict({**state, "state": moments})


def _like(own: Tensor | None, value: Any) -> Any:
    """The value, sharded like `own` if that is sharded and has the same shape."""
    if not isinstance(own, DTensor) or not isinstance(value, Tensor) or own.shape != value.shape:
        return value
    mesh: DeviceMesh = own.device_mesh
    return distribute_tensor(value.to(own.device), mesh, own.placements)
