"""Networks in shards: each process keeps a part of every weight, of its gradient and of what the
optimizer remembers of it, and sees the others' parts while it computes with them (FSDP2, torch's
`fully_shard`). Layer: training; the only file that knows sharded tensors.
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

__all__ = ["into_shards", "load_in_shards", "load_optimizer", "sharded_modules", "whole"]

_UNIT = 2**16
"""Weights from which a layer is gathered on its own; the others are gathered with the network."""
_LAYERS = (nn.Linear, nn.Embedding, _ConvNd)

State = TypeVar("State")


def into_shards(objective: Objective, device: torch.device, num: int) -> Objective:
    """A copy of the objective whose networks lie in shards on the devices of `num` processes, each
    of which calls this. The objective itself is left, whole, on the CPU.

    Raises:
        TrainingError: a weight is still whole: this process would hold all of it.
    """
    mesh = init_device_mesh(device.type, (num,))
    objective.to(torch.device("cpu"))
    copy = deepcopy(objective)
    for part in copy.modules():
        for weight in part.parameters(recurse=False):
            weight.data = weight.data.contiguous()  # channels-last ones cannot be sharded
    for root in _roots(copy):
        for layer in root.modules():
            if layer is not root and isinstance(layer, _LAYERS) and _num_weights(layer) >= _UNIT:
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
            f"sharding the networks: {len(left)} weights would lie whole in each process,"
            f" '{left[0]}' for one",
            advice="Leave out --shard.",
        )
    return copy


def _roots(objective: Objective) -> Iterator[nn.Module]:
    """The modules that are called, from outside of any other."""
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
    """The networks of `objective` that lie in shards."""
    return [module for module in objective.modules() if isinstance(module, FSDPModule)]


def whole(state: State) -> State:
    """The same tree with every sharded tensor put together. All processes must ask."""
    return tree_map_only(DTensor, DTensor.full_tensor, state)  # type: ignore[no-any-return]


def load_in_shards(module: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Loads a whole state into a module, sharded or not."""
    own = module.state_dict()
    module.load_state_dict({name: _like(own.get(name), value) for name, value in state.items()})


def load_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Loads a whole state into the optimizer of weights that are sharded or not."""
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    moments = {
        index: {name: _like(weights[index], value) for name, value in own.items()}
        for index, own in state["state"].items()
    }
    optimizer.load_state_dict({**state, "state": moments})


def _like(own: Tensor | None, value: Any) -> Any:
    """The value in shards where its place is, and is as large."""
    if not isinstance(own, DTensor) or not isinstance(value, Tensor) or own.shape != value.shape:
        return value
    mesh: DeviceMesh = own.device_mesh
    return distribute_tensor(value.to(own.device), mesh, own.placements)
