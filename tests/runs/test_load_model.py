from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from mnist_ce import evaluate, load_model
from mnist_ce.runs.checkpoint import load_state_dict

pytestmark = pytest.mark.usefixtures("small_data")


class Foreign(nn.Module):
    """Another program's network, which happens to name its layers l1 to l5."""

    def __init__(self) -> None:
        super().__init__()
        self.l1, self.l2, self.l3 = nn.Linear(784, 520), nn.Linear(520, 320), nn.Linear(320, 240)
        self.l4, self.l5 = nn.Linear(240, 120), nn.Linear(120, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x.view(-1, 784)
        for layer in (self.l1, self.l2, self.l3, self.l4):
            x = torch.relu(layer(x))
        logits: torch.Tensor = self.l5(x)
        return logits


@pytest.mark.parametrize(("mean", "std"), [(0.0, 1.0), (0.1307, 0.3081)])
def test_a_foreign_state_dict_computes_what_its_own_network_does(
    tmp_path: Path, mean: float, std: float
) -> None:
    torch.manual_seed(3)
    network = Foreign()
    torch.save(network.state_dict(), tmp_path / "foreign.pt")
    report = evaluate(load_model(tmp_path / "foreign.pt", input_mean=mean, input_std=std))
    images = (report.images.float() / 255 - mean) / std
    with torch.no_grad():
        predictions = network(images.unsqueeze(1)).argmax(dim=1)
    assert report.result.num_correct == int((predictions == report.result.labels).sum())
    assert load_state_dict(tmp_path / "foreign.pt").keys() == network.state_dict().keys()
    network.load_state_dict(load_model(tmp_path / "foreign.pt").model.state_dict())
