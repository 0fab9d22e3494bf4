"""The parts of an emitted file around its classes: docstring, imports, constants, loading."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath, PureWindowsPath

import torch

from fitcompress.exporters.python.expressions import quoted
from fitcompress.exporters.python.wrap import WIDTH, broken
from fitcompress.graph.program import Program, output_nodes
from fitcompress.interface import Interface

__all__ = ["FileParts", "file_text"]

_MOST_NAMES = 100
"""At most this many class names are listed in the file."""

_DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
"""Their names in safetensors files."""

_LOADING = '''
def build() -> {name}:
    """The network without its weights."""
    return {name}()


def load(path: str | Path = WEIGHTS) -> {name}:
    """The network with the weights of a safetensors file, ready to run."""
    network = build()
    network.load_state_dict(read_tensors(path))
    return network.eval()


def read_tensors(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file by name: the length of a JSON header, the header, bytes."""
    data = bytearray(Path(path).read_bytes())
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:start])
    header.pop("__metadata__", None)
    tensors = {{}}
    for name, entry in header.items():
        begin, end = entry["data_offsets"]
        flat = torch.frombuffer(data[start + begin : start + end], dtype=DTYPES[entry["dtype"]])
        tensors[name] = flat.reshape(entry["shape"])
    return tensors


if __name__ == "__main__":
    network = load()
    num_parameters = sum(parameter.numel() for parameter in network.parameters())
    print(f"{{num_parameters:,}} parameters")
    with torch.no_grad():
{call}
    print({shown})
'''


@dataclass(frozen=True)
class FileParts:
    """What the file contains besides its classes."""

    interface: Interface
    program: Program
    input_names: Sequence[str]
    class_name: str


def file_text(file: FileParts, classes: Sequence[str]) -> str:
    """The whole file."""
    code = "\n\n\n".join(classes)
    call = "\n".join(broken(f"        outputs = network({_examples(file)})"))
    loading = _LOADING.format(name=file.class_name, call=call, shown=_shown(file))
    parts = [
        f'"""{_description(file)}"""',
        "",
        *_imports(f"{code}\n{loading}"),
        "",
        'WEIGHTS = Path(__file__).with_name("model.safetensors")',
        *_constants(file),
        "",
        "",
        code,
        "",
    ]
    return "\n".join(parts) + "\n" + loading


def _imports(code: str) -> list[str]:
    standard = [
        "import json",
        *(["import math"] if "math." in code else []),
        *(["from collections.abc import Sequence"] if "Sequence[" in code else []),
        "from pathlib import Path",
    ]
    has_functional = "functional." in code
    return [
        *standard,
        "",
        "import torch",
        "from torch import Tensor, nn",
        *(["from torch.nn import functional"] if has_functional else []),
    ]


def _constants(file: FileParts) -> list[str]:
    dtypes = {value.dtype: None for value in file.program.tensors.values()}
    pairs = ", ".join(f'"{_DTYPES[dtype]}": {dtype}' for dtype in _DTYPES if dtype in dtypes)
    lines = broken(f"DTYPES = {{{pairs}}}")
    names = file.interface.class_names
    if names and len(names) <= _MOST_NAMES and max(map(len, names)) <= WIDTH // 2:
        listed = ", ".join(map(quoted, names)) + ("," if len(names) == 1 else "")
        lines += broken(f"CLASS_NAMES = ({listed})")
    return lines


# --- words ----------------------------------------------------------------------------------


def _description(file: FileParts) -> str:
    origin = file.interface.origin
    teacher = _safe(_without_folder(origin.get("teacher", "")))
    of_teacher = f", distilled from {teacher}" if teacher else ""
    facts = [
        *_fact("its depth is {} times the teacher's", origin.get("depth_mult")),
        *_fact("its width {} times", origin.get("width_mult")),
    ]
    version = origin.get("fitcompress", "")
    written = f"Written by fitcompress {version}".rstrip()
    paragraphs = [
        f"A student network{of_teacher}.",
        f"{written}{': ' if facts else ''}{', '.join(facts)}. `load()` gives it with the weights in"
        " model.safetensors, which lies beside this file; nothing but torch is needed.",
        *_input_words(file),
        *_output_words(file),
    ]
    return "\n\n".join(_wrapped(text) for text in paragraphs) + "\n"


def _fact(text: str, value: str | None) -> list[str]:
    return [text.format(value)] if value else []


def _input_words(file: FileParts) -> list[str]:
    images = file.interface.input
    if images is None:
        listed = [
            f"{name} {_batched(info.shape)} {str(info.dtype).removeprefix('torch.')}"
            for name, info in zip(file.input_names, file.program.inputs, strict=True)
        ]
        return [f"Inputs: {', '.join(listed)}."]
    mean, std = (", ".join(f"{value:g}" for value in side) for side in (images.mean, images.std))
    return [
        f"Input: images {_batched(images.shape)}, float32, as (pixels / 255 - mean) / std with mean"
        f" ({mean}) and std ({std}) of the channels; resized with {images.interpolation}"
        f" interpolation so that the centre crop keeps {images.crop_pct:g} of the shorter side."
    ]


def _output_words(file: FileParts) -> list[str]:
    activation = file.interface.activation
    names = file.interface.output_names
    words = [f"Outputs: {', '.join(map(_safe, names))}."] if names else []
    ending = [f"The outputs have gone through {activation}."] if activation else []
    count = len(file.interface.class_names)
    classes = [f"{count} classes."] if count else []
    text = " ".join([*words, *classes, *ending])
    return [text] if text else []


def _batched(shape: Sequence[int]) -> str:
    return f"(N{''.join(f', {size}' for size in shape)})" if shape else "(N,)"


def _without_folder(teacher: str) -> str:
    """The teacher's source; of an absolute path, only the file name."""
    for path in (PurePosixPath(teacher), PureWindowsPath(teacher)):
        if path.is_absolute():
            return path.name
    return teacher


def _safe(text: str) -> str:
    """The text without characters that would end or change a docstring."""
    return " ".join(text.replace("\\", "/").replace('"', "'").split())


def _wrapped(text: str) -> str:
    return textwrap.fill(text, WIDTH, break_long_words=True)


def _examples(file: FileParts) -> str:
    parts = []
    for info in file.program.inputs:
        sizes = ", ".join(map(str, (1, *info.shape)))
        if info.dtype is torch.float32:
            parts.append(f"torch.rand({sizes})")
        else:
            parts.append(f"torch.ones({sizes}, dtype={info.dtype})")
    return ", ".join(parts)


def _shown(file: FileParts) -> str:
    is_single = len(output_nodes(file.program.graph)) == 1
    inside = "{tuple(outputs.shape)}" if is_single else "{[tuple(one.shape) for one in outputs]}"
    return f'f"outputs {inside}"'
