"""What a group of processes refuses. How processes train together is in `tests/integration`."""

from __future__ import annotations

import pytest

from fitcompress.errors import TrainingError
from fitcompress.training.device import start_accelerator
from fitcompress.training.distributed import ProcessGroup


def test_other_kinds_of_parallelism_are_refused():
    class Sharded:
        class distributed_type:
            value = "FSDP"

    with pytest.raises(TrainingError) as caught:
        ProcessGroup(Sharded())
    assert caught.value.code == "parallelism-unsupported"
    assert caught.value.facts["got"] == "FSDP"
    assert "--shard" in caught.value.advice


def test_one_process_cannot_shard():
    with pytest.raises(TrainingError) as caught:
        ProcessGroup(start_accelerator("cpu", "fp32"), is_sharded=True)
    assert caught.value.code == "shard-single-process"
