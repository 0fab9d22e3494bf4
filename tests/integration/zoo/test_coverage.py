"""Students of a sample of timm models that covers all mechanisms, and of all with `-m slow`.

Measured by the published sweep (`examples/benchmarks/coverage`).
"""

from __future__ import annotations

import pytest
import timm
from sweep import Row, measure

SAMPLE = (
    *("beit_base_patch16_224", "convit_tiny", "convmixer_768_32", "crossvit_tiny_240"),
    *("cs3darknet_focus_s", "dla46x_c", "dpn48b", "eca_resnet33ts", "edgenext_xx_small"),
    *("efficientformer_l1", "efficientvim_m1", "ese_vovnet19b_slim_dw", "eva02_tiny_patch14_224"),
    *("fastvit_t8", "gmlp_ti16_224", "halonet26t", "hrnet_w18_small", "inception_next_atto"),
    *("levit_128s", "mobilevit_xxs", "nest_tiny", "nextvit_small", "pit_ti_224"),
    *("poolformerv2_s12", "regnetx_002", "repvit_m1", "res2next50", "resnest14d"),
    *("resnet50_clip_gap", "shvit_s1", "skresnet18", "starnet_s050", "swinv2_tiny_window8_256"),
    *("test_nfnet", "tnt_s_legacy_patch16_224", "visformer_tiny", "vit_small_patch8_224"),
    *("vit_tiny_r_s16_p8_224", "volo_d1_224", "xception41p"),
)
"""Packed and joined attention, its tables, several branches, groups, channels moved to spatial
dimensions, unequal splits, windows, overlapping patches, standardized weights, outputs as wide as
inner layers, convolutions and tokens in one network.
"""


def check(row: Row) -> None:
    assert row.captured and row.verified, row.notice
    assert row.regressor
    assert row.depth_ratio >= 1.8
    assert row.params_ratio <= 1.15 * row.floor_ratio, row.frozen
    if row.params > 3_000_000 and row.floor_ratio <= 0.2:
        assert row.params_ratio <= 0.2, row.frozen


def test_the_sample_has_forty_models_that_timm_knows():
    assert len(set(SAMPLE)) == 40
    assert set(SAMPLE) <= set(timm.list_models())


@pytest.mark.parametrize("name", SAMPLE)
def test_a_student_has_the_requested_depth_and_width(name):
    (row,) = measure(name)
    check(row)


def test_a_model_that_cannot_be_planned_has_a_notice():
    (row,) = measure("no_such_model")
    assert not row.captured
    assert "timm" in row.notice and "no_such_model" in row.notice


@pytest.mark.slow
@pytest.mark.parametrize("name", timm.list_models())
def test_every_model_of_timm_gives_a_student(name):
    (row,) = measure(name)
    assert row.captured and row.verified and row.regressor, row.notice
