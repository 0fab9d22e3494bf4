"""TorchScript archives (`.pt`)."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn

from fitcompress.exporters.check import output_list
from fitcompress.exporters.exportable import Exportable

__all__ = ["open_torchscript", "write_torchscript"]


def write_torchscript(exportable: Exportable, path: Path) -> None:
    """Traces the network if the trace runs at any batch size; otherwise scripts its graph. The file
    is not checked.
    """
    network = exportable.network
    with torch.no_grad():
        archive: Any = None
        if not _reads_sizes(network):
            archive = torch.jit.trace(network, exportable.rows(2), check_trace=False)
        if archive is None or not _runs_as(archive, network, exportable.rows(4)):
            archive = torch.jit.script(_scriptable(network)).eval()
    torch.jit.save(archive, str(path), _extra_files=exportable.metadata())


def _reads_sizes(network: nn.Module) -> bool:
    """Whether a graph reads a size, which a trace would turn into a constant."""
    graphs = [module.graph for module in network.modules() if isinstance(module, fx.GraphModule)]
    return any(n.target is torch.ops.aten.sym_size.int for graph in graphs for n in graph.nodes)


def _runs_as(archive: Callable[..., Any], network: nn.Module, inputs: tuple[Tensor, ...]) -> bool:
    expected = output_list(network(*inputs))
    try:
        got = output_list(archive(*inputs))
    except RuntimeError:  # a batch size baked into a view
        return False
    return all(
        a.shape == b.shape and torch.allclose(a, b, rtol=1e-4, atol=1e-4)
        for a, b in zip(expected, got, strict=True)
    )


def _scriptable(network: nn.Module) -> nn.Module:
    """A copy whose graphs use TorchScript's operators and types of sizes."""
    network = copy.deepcopy(network)
    for module in network.modules():
        if isinstance(module, fx.GraphModule):
            for node in module.graph.nodes:
                is_size = isinstance(node.meta.get("val"), (int, torch.SymInt))
                node.type = int if node.op == "placeholder" and is_size else None
                if isinstance(node.target, torch._ops.OpOverload):
                    packet = node.target.overloadpacket
                    node.target = (
                        torch.ops.aten.size if packet is torch.ops.aten.sym_size else packet
                    )
            module.recompile()
    return network


def open_torchscript(path: Path) -> Callable[..., Any]:
    archive: Callable[..., Any] = torch.jit.load(str(path))
    return archive
