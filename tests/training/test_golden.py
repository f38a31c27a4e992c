"""Golden runs: a change of the code that changes no behaviour changes no loss and no weight."""

from __future__ import annotations

import platform
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from mnist_ce.training.trainer import train

RECIPES: dict[str, dict[str, Any]] = {
    "simple": {},
    "everything": {
        "optimizer.momentum": 0.9,
        "optimizer.nesterov": True,
        "optimizer.weight_decay": 1e-3,
        "average.decay": 0.9,
        "augment.rotation_degrees": 10.0,
        "schedule.kind": "one-cycle",
    },
}
# (train loss, test loss) of each epoch. Another CPU rounds differently: with MKL_CBWR=COMPATIBLE,
# which uses no vector instructions, the losses of `simple` change by 3e-7 of their value and those
# of `everything` by 2e-5.
LOSSES = {
    "simple": [(2.303654933, 2.285217865), (2.262419939, 2.239998757)],
    "everything": [(2.297974396, 2.268472977), (2.215625024, 2.209492261)],
}
TOLERANCE = {"simple": 1e-6, "everything": 5e-5}

# Digests of the weights, for which torch and the CPU must be the same.
DIGESTS = {
    ("2.14.1", "x86_64 GenuineIntel 6 167 AVX512"): {
        ("simple", "plain"): "ed6f2382410a357b9fb0055528ed5c0e6c614e86856789d7b1154361d9b7959b",
        ("everything", "plain"): "6e62d12a8d31f85c1a588a8cdb4630fc08966c635edd8eb891c78c4661c5eb4d",
    },
    ("2.14.1", "x86_64 AuthenticAMD 25 17 AVX512"): {
        ("simple", "plain"): "bf39bf34f6ada105caf7a3b9565e53d944e1ef84f2a3ff4c574df1afb8d63eac",
        ("simple", "fast"): "384ce7838d5a75d8232588d4d898aaccbf8c53cbb8389a7492804be562b34d81",
        ("everything", "plain"): "67f66b027100ef5eeee8ef803d355419a3d71cd5c03b7bc55b57514dacc7056b",
        ("everything", "fast"): "dcf5deb8fd8f3b94ecb2916acda529b09195a1440053128190a3cba76fd3fd34",
    },
}


def cpu() -> str:
    """Return the machine, the CPU's vendor, family and model, and the instructions torch uses."""
    info = Path("/proc/cpuinfo")
    text = info.read_text() if info.is_file() else ""
    fields = re.findall(r"^(?:vendor_id|cpu family|model)\s*: (.*)$", text, re.MULTILINE)[:3]
    return " ".join([platform.machine(), *fields, torch.backends.cpu.get_cpu_capability()])


@pytest.mark.parametrize("step", ["plain", "fast"])
@pytest.mark.parametrize("recipe", RECIPES)
def test_a_run_gives_the_recorded_losses_and_weights(
    small_settings: dict[str, Any], recipe: str, step: str
) -> None:
    result = train(None, {**small_settings, **RECIPES[recipe], "train.step": step})
    losses = [(row["train_loss"], row["test_loss"]) for row in result.rows]
    for found, expected in zip(losses, LOSSES[recipe], strict=True):
        assert found == pytest.approx(expected, rel=TOLERANCE[recipe])
    platform_here = (torch.__version__.partition("+")[0], cpu())
    if (recipe, step) not in DIGESTS.get(platform_here, {}):
        pytest.skip(f"the losses agree, but there is no digest for {platform_here}")
    assert result.record["weights_sha256"] == DIGESTS[platform_here][recipe, step]
