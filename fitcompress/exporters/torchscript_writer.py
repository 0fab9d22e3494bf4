"""TorchScript archives."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn

from fitcompress.exporters.artifact import Exportable, output_list
from fitcompress.exporters.onnx_writer import VERSION
from fitcompress.interface import Interface, interface_to_metadata


def write_torchscript(source: Exportable, path: Path) -> None:
    """Traced where a trace holds at any batch size, else scripted from the graph."""
    with torch.no_grad():
        archive: Any = None
        if not _reads_sizes(source.network):
            archive = torch.jit.trace(source.network, source.rows(2), check_trace=False)
        if archive is None or not _runs_as(archive, source.network, source.rows(4)):
            archive = torch.jit.script(_scriptable(source.network)).eval()
    torch.jit.save(
        archive, str(path), _extra_files=interface_to_metadata(source.interface, VERSION)
    )


def _reads_sizes(network: nn.Module) -> bool:
    """Whether a graph in it asks for a size, which a trace would write down as a number."""
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
    """A copy whose graphs name operators, and types of sizes, as TorchScript knows them."""
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


def open_torchscript(path: Path, interface: Interface) -> Callable[..., Any]:
    del interface
    archive: Callable[..., Any] = torch.jit.load(str(path))
    return archive
