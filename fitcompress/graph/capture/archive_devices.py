"""Makes TorchScript archives loadable that name a device of another machine.

An archive saved on a GPU may contain `torch.device("cuda:0")` in its code. Loading it with
`map_location="cpu"` moves the tensors but not this line, which fails on a machine without the
device.
"""

from __future__ import annotations

import re
import zipfile
from io import BytesIO
from pathlib import Path

__all__ = ["without_devices"]

_DEVICE = re.compile(rb'torch\.device\("(?!cpu|meta)[a-z]+(:\d+)?"\)')


def without_devices(path: Path) -> str | BytesIO:
    """What to pass to `torch.jit.load`: the path, or, if the archive's code names a device, an
    in-memory copy that names the CPU.
    """
    if not zipfile.is_zipfile(path):
        return str(path)
    with zipfile.ZipFile(path) as archive:
        code = {name: archive.read(name) for name in archive.namelist() if name.endswith(".py")}
        if not any(_DEVICE.search(text) for text in code.values()):
            return str(path)
        return _rewritten(archive, code)


def _rewritten(archive: zipfile.ZipFile, code: dict[str, bytes]) -> BytesIO:
    buffer = BytesIO()
    with zipfile.ZipFile(buffer, "w") as copy:
        for entry in archive.infolist():
            text = code.get(entry.filename)
            content = archive.read(entry) if text is None else _DEVICE.sub(_CPU, text)
            copy.writestr(entry, content)
    buffer.seek(0)
    return buffer


_CPU = b'torch.device("cpu")'
