"""Weight files, and the detection of file formats.

Formats are detected by content, never by name. Nothing is unpickled that could run code.
"""

from __future__ import annotations

import io
import json
import re
import warnings
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from fitcompress.errors import TeacherError
from fitcompress.formatting import first_line

__all__ = ["file_kind", "load_weights", "read_weights", "refuse_unsafe_export"]


def file_kind(path: Path) -> str:
    """The format: "torchscript", "pt2", "safetensors", "weights" (a state dict) or "" (unknown).

    Raises:
        TeacherError: the file is missing or truncated, or loading it would run code.
    """
    if not path.is_file():
        raise TeacherError(
            f"opening '{path}': there is no such file",
            code="no-such-file",
            advice="Check the path.",
            path=str(path),
        )
    with path.open("rb") as file:
        head = file.read(16)
    if head[:4] == b"PK\x03\x04":
        return _archive_kind(path)
    if len(head) > 8 and head[8:9] == b"{":
        return "safetensors"
    if head[:1] == b"\x80":
        _read_pickled(path)
        return "weights"
    return ""


def read_weights(path: Path) -> dict[str, Tensor]:
    """Tensors of a safetensors file or a state dict by name, without common wrappers and prefixes.

    Raises:
        TeacherError: the file has no weights or is truncated, or loading it would run code.
    """
    kind = file_kind(path)
    if kind == "safetensors":
        try:
            return _without_prefix(safetensors.torch.load_file(path))
        except (safetensors.SafetensorError, ValueError, OSError) as error:
            raise _truncated(path, error) from error
    if kind == "weights":
        return _without_prefix(_unwrapped(_read_pickled(path), path))
    raise TeacherError(
        f"reading weights from '{path}': expected safetensors or a state dict,"
        f" got {_KIND_NAMES[kind]}",
        code="weights-expected",
        advice="Pass it with --teacher instead." if kind else "",
        path=str(path),
        got=kind,
    )


def load_weights(module: nn.Module, weights: Mapping[str, Tensor], source: str) -> bool:
    """Copies weights into a module.

    Returns True if they were matched by order, because no names but all shapes agree.

    Raises:
        TeacherError: names or shapes do not match.
    """
    own = module.state_dict()
    by_order = not set(own) & set(weights) and _fit_in_order(own, weights)
    if by_order:
        weights = dict(zip(own, weights.values(), strict=True))
    counters = {name for name in own if name.endswith("num_batches_tracked")}
    missing = [name for name in own if name not in weights and name not in counters]
    unexpected = [name for name in weights if name not in own]
    reshaped = [
        f"{name} (expected {tuple(own[name].shape)}, got {tuple(weights[name].shape)})"
        for name in own
        if name in weights and weights[name].shape != own[name].shape
    ]
    if missing or unexpected or reshaped:
        parts = {"missing": missing, "unexpected": unexpected, "of another shape": reshaped}
        found = "; ".join(f"{kind}: {_few(names)}" for kind, names in parts.items() if names)
        raise TeacherError(
            f"loading weights from '{source}': they do not match the model; {found}",
            code="weights-mismatch",
            advice="Check the model's name, and --num-classes if the head differs.",
            path=source,
            missing=missing,
            unexpected=unexpected,
            reshaped=reshaped,
        )
    module.load_state_dict(dict(weights), strict=False)
    return by_order


def refuse_unsafe_export(path: Path) -> None:
    """Checks a `.pt2` file: `torch.export.load` unpickles some entries and evaluates sizes.

    Allowed are the entries that `torch.export.save` of torch 2.9 to 2.15 writes: raw tensors, their
    JSON index, the graph as JSON, example inputs that `weights_only` can read, and extra files,
    which are text.

    Raises:
        TeacherError: the file has another entry.
    """
    with zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            entry = name.partition("/")[2]
            if not _ALLOWED_ENTRY.fullmatch(entry):
                raise _unsafe(path, f"the entry '{entry}'")
            if entry.startswith("data/sample_inputs/"):
                if content := archive.read(name):  # torch 2.14 leaves an empty one
                    _refuse_code(path, content)
            elif entry.endswith("_config.json"):
                _refuse_pickled_tensors(path, json.loads(archive.read(name)))
            elif entry.startswith("models/"):
                _refuse_foreign_graph(path, json.loads(archive.read(name)))


# --- formats -------------------------------------------------------------------------

_KIND_NAMES = {
    "torchscript": "a TorchScript archive",
    "pt2": "an exported program",
    "safetensors": "safetensors",
    "weights": "a state dict",
    "": "an unknown format",
}


def _archive_kind(path: Path) -> str:
    try:
        with zipfile.ZipFile(path) as archive:
            entries = {name.partition("/")[2] for name in archive.namelist()}
            damaged = archive.testzip()
    except (zipfile.BadZipFile, OSError, EOFError) as error:
        raise _truncated(path, error) from error
    if damaged:
        raise _truncated(path, zipfile.BadZipFile(f"bad checksum in '{damaged}'"))
    if "constants.pkl" in entries and any(entry.startswith("code/") for entry in entries):
        return "torchscript"
    if "archive_format" in entries and any(entry.startswith("models/") for entry in entries):
        return "pt2"
    if "data.pkl" in entries:
        _read_pickled(path)
        return "weights"
    return ""


def _read_pickled(path: Path) -> Any:
    try:
        # From a file object: given a path, torch detects the format by its suffix.
        with path.open("rb") as file, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:
        if "nsupported" in str(error) or "eights_only" in str(error):
            raise TeacherError(
                f"opening '{path}': it is a pickled Python object, and loading it would run code",
                code="pickle-refused",
                advice="Load it where its code is installed, and save it with"
                " torch.jit.trace(model, example).save(FILE) or torch.export.save. For"
                " --teacher-weights, use torch.save(model.state_dict(), FILE).",
                path=str(path),
            ) from error
        raise _truncated(path, error) from error


def _truncated(path: Path, error: Exception) -> TeacherError:
    cause = first_line(error)
    return TeacherError(
        f"opening '{path}': the file is truncated or damaged ({cause})",
        code="file-truncated",
        advice="Copy or download it again.",
        path=str(path),
    )


# --- names in state dicts -------------------------------------------------------------------

_WRAPPERS = ("state_dict", "model_state_dict", "model_state", "model", "module", "net", "weights")
_PREFIXES = ("module.", "_orig_mod.", "model.")


def _unwrapped(content: Any, path: Path) -> dict[str, Tensor]:
    while isinstance(content, Mapping):
        wrapper = next((key for key in _WRAPPERS if isinstance(content.get(key), Mapping)), None)
        if wrapper is None:
            break
        content = content[wrapper]
    tensors = {k: v for k, v in _items(content) if isinstance(v, Tensor)}
    if not tensors:
        raise TeacherError(
            f"reading weights from '{path}': expected named tensors, got none",
            code="no-named-tensors",
            path=str(path),
        )
    return tensors


def _items(content: Any) -> Iterable[tuple[str, Any]]:
    return content.items() if isinstance(content, Mapping) else ()


def _without_prefix(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    names = dict(weights)
    prefixes = iter(_PREFIXES)
    prefix = next(prefixes, None)
    while prefix is not None:
        if all(name.startswith(prefix) for name in names):
            names = {name.removeprefix(prefix): value for name, value in names.items()}
            prefixes = iter(_PREFIXES)
        prefix = next(prefixes, None)
    return names


def _fit_in_order(own: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> bool:
    return [v.shape for v in own.values()] == [v.shape for v in weights.values()]


def _few(names: list[str], limit: int = 3) -> str:
    shown = ", ".join(names[:limit])
    return f"{shown} and {len(names) - limit} more" if len(names) > limit else shown


# --- exported programs ----------------------------------------------------------------------

_ALLOWED_ENTRY = re.compile(
    r"data/weights/(weight_\d+|\w+_weights_config\.json)"
    r"|data/constants/(tensor_\d+|\w+_constants_config\.json)"
    r"|data/sample_inputs/\w+\.pt|models/\w+\.json"
    r"|archive_format|archive_version|byteorder|version|\.data/(version|serialization_id)"
    r"|extra/\w+"
)
_ALLOWED_TARGET = re.compile(
    r"torch\.ops\.(aten|higher_order)\.\w+(\.\w+)?|_operator\.\w+|math\.\w+|torch\.sym_\w+"
)
_EXPRESSION_TOKEN = re.compile(
    r"Symbol\('\w+', (positive=True, )?(integer=True)?\)|[suz]\d+|\d+(\.\d+)?|[-+*/%(),<>=!&|~\s]"
    r"|(Mul|Add|Integer|Rational|Float|Max|Min|Mod|PythonMod|FloorDiv|CeilDiv|CleanDiv|IntTrueDiv|TrueDiv|FloatTrueDiv|ModularIndexing"
    r"|Pow|PowByNatural|Eq|Ne|Ge|Gt|Le|Lt|And|Or|Not|Where|Identity|floor|ceiling|oo|int_oo"
    r"|True|False|true|false)\b|precision=\d+|'[\d.]+'"
)
"""The tokens of a size; any other name could reach a function of the evaluator."""


def _refuse_code(path: Path, content: bytes) -> None:
    try:
        torch.load(io.BytesIO(content), weights_only=True)
    except Exception as error:
        raise _unsafe(path, "example inputs that run code") from error


def _refuse_pickled_tensors(path: Path, index: Mapping[str, Any]) -> None:
    for name, entry in index["config"].items():
        if entry.get("use_pickle"):
            raise _unsafe(path, f"the pickled tensor '{name}'")


def _refuse_foreign_graph(path: Path, model: Any) -> None:
    """Allows only ATen calls, and arithmetic in sizes, which torch evaluates."""
    for key, value in _strings(model):
        if key == "target" and "." in value and not _is_name_or_call(value):
            raise _unsafe(path, f"a call of '{value}'")
        if key == "expr_str" and _EXPRESSION_TOKEN.sub("", value):
            raise _unsafe(path, f"the size expression '{value[:60]}'")


def _is_name_or_call(target: str) -> bool:
    """Whether the target is the dotted name of a weight, or an allowed call."""
    is_call = target.startswith(("torch", "_operator", "math", "#", "builtins"))
    return not is_call or _ALLOWED_TARGET.fullmatch(target) is not None


def _strings(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(value, dict):
        for name, item in value.items():
            yield from _strings(item, str(name))
    elif isinstance(value, list):
        for item in value:
            yield from _strings(item, key)
    elif isinstance(value, str):
        yield key, value


def _unsafe(path: Path, what: str) -> TeacherError:
    return TeacherError(
        f"opening '{path}': the exported program contains {what}, so loading it could run code",
        code="export-unsafe",
        advice="Export it again with torch.export.save(program, FILE), or as TorchScript.",
        path=str(path),
        entry=what,
    )
