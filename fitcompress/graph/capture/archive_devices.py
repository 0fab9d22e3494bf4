"""Opens TorchScript archives that name a device of another machine. Layer: graph (torch-free).

An archive that was saved on a GPU may hold `torch.device("cuda:0")` in its code: loading its
tensors to the CPU does not change that, and such a line fails where there is no such device.
"""

from __future__ import annotations

import re
import zipfile
from io import BytesIO
from pathlib import Path

__all__ = ["without_devices"]

_DEVICE = re.compile(rb'torch\.device\("(?!cpu|meta)[a-z]+(:\d+)?"\)')


def without_devices(path: Path) -> str | BytesIO:
    """What to load instead of the archive: itself, or where its code names a device a copy in
    memory that names the CPU.
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
