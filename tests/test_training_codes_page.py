"""Every block of the page "PAT in your training code" runs, as a reader types it."""

import numpy as np
import pytest
import torch
from test_rerun_page import ROOT, blocks

from conftest import write_image
from patlib import RunRecord
from patlib.losses import pat_loss

PAGE = ROOT / "book" / "training_codes.md"


@pytest.mark.filterwarnings("ignore")
def test_every_block_runs_and_every_network_learns_from_pat(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    write_image(tmp_path / "street.jpg", np.zeros((40, 50, 3), np.uint8))
    space = {"__name__": "__main__"}
    for block in blocks(PAGE, "python"):
        space.pop("loss", None)
        exec(compile(block, PAGE.name, "exec"), space)
        if isinstance(loss := space.get("loss"), torch.Tensor):
            assert torch.isfinite(loss) and loss > 0
    for network in ("network", "unet", "segformer"):
        assert all(p.grad is not None for p in space[network].parameters()), network
    assert space["trainer"].global_step == 2 and "train_loss" in space["trainer"].callback_metrics
    # The loss of the SegFormer is PAT of logits of the masks' size.
    images, masks = space["images"], space["masks"]
    model = space["segformer"].eval()
    with torch.no_grad():
        logits = torch.nn.functional.interpolate(
            model(pixel_values=images).logits, size=masks.shape[1:], mode="bilinear"
        )
        expected = pat_loss(logits, masks).item()
        assert space["compute_loss"](model, images, masks).item() == pytest.approx(expected)
    # As a decode head of mmsegmentation calls its losses.
    loss_decode, head_logits = space["PATLoss"](5, temperature=5.0), torch.randn(*logits.shape)
    called = loss_decode(head_logits, masks, weight=None, ignore_index=255)
    assert called.item() == pytest.approx(pat_loss(head_logits, masks, temperature=5.0).item())
    with pytest.raises(ValueError, match="no pixel weights"):
        loss_decode(head_logits, masks, weight=torch.ones(masks.shape))
    record = RunRecord.load("runs/own/record.json")
    assert record.config["model"] == "own:torch.nn.modules.container.Sequential"
    assert np.isfinite(record.result["test"]["miou"])
    assert {p.suffix for p in tmp_path.glob("net.*")} == {".onnx", ".pt2"}
    assert space["labels"].shape == (40, 50) and space["labels"].max() < len(space["classes"])
    assert list((tmp_path / "runs" / "board").rglob("events.*"))
