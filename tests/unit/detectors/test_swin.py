"""Swin-T as a bottom-up network."""

from __future__ import annotations

import pytest
import torch
from detectron2.modeling.backbone.swin import SwinTransformer
from timm.layers import DropPath

from lgd.config.experiment import Backbone
from lgd.detectors.backbones import build_bottom_up
from lgd.detectors.swin import Swin

ALL = ["res2", "res3", "res4", "res5"]


def test_swin_is_detectron2s() -> None:
    ours = Swin(8, ALL[1:]).eval()
    theirs = SwinTransformer(embed_dim=8, num_heads=(1, 2, 4, 8), drop_path_rate=0.0, out_indices=(1, 2, 3)).eval()
    theirs.load_state_dict(ours.state_dict(), strict=True)
    images = torch.randn(1, 3, 90, 133)
    with torch.no_grad():
        features = ours(images)
        expected = theirs(images)
    assert list(features) == ALL[1:]
    for ours_, theirs_ in zip(features.values(), expected.values(), strict=True):
        assert torch.equal(ours_, theirs_)
    assert features["res3"].shape == (1, 16, 12, 17)


def test_swin_drops_paths_in_training_only_and_ever_more_of_them() -> None:
    swin = Swin(8, ALL)
    rates = [x.drop_prob for x in swin.modules() if isinstance(x, DropPath)]
    torch.testing.assert_close(torch.tensor(rates), torch.linspace(0, 0.2, 12)[1:])
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(swin.eval()(images)["res5"], swin(images)["res5"])
        swin.train()
        found = [swin(images)["res5"] for _ in range(8)]
    assert any(not torch.equal(found[0], x) for x in found[1:])


def test_swin_stages_that_nobody_reads_are_not_built() -> None:
    swin = Swin(8, ["res2", "res3"])
    assert len(swin.layers) == 2
    # The rates are those of the whole network.
    assert [round(x.drop_prob, 3) for x in swin.modules() if isinstance(x, DropPath)] == [0.018, 0.036, 0.055]
    sum(x.sum() for x in swin(torch.randn(1, 3, 32, 32)).values()).backward()
    assert all(p.grad is not None for p in swin.parameters())


@pytest.mark.parametrize(("freeze_at", "frozen"), [(0, []), (1, ["patch_embed"]), (2, ["patch_embed", "layers.0"])])
def test_swin_freezes_like_a_resnet(freeze_at: int, frozen: list[str]) -> None:
    swin = build_bottom_up(Backbone(name="swin_t", width=8, weights="s.pth", freeze_at=freeze_at), ALL).train()
    still = {name for name, p in swin.named_parameters() if not p.requires_grad}
    assert still == {name for name, _ in swin.named_parameters() if name.startswith(tuple(f"{x}." for x in frozen))}
    drops = [x.training for x in swin.layers[0].modules() if isinstance(x, DropPath)]
    assert drops == [freeze_at < 2]
