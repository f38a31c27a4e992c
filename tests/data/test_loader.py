from __future__ import annotations

import torch

from mnist_ce.data.loader import DeviceLoader


def test_the_order_is_a_function_of_seed_and_epoch() -> None:
    images, labels = torch.zeros(100, 28, 28, dtype=torch.uint8), torch.arange(100)

    def order(seed: int, epoch: int) -> list[int]:
        batches = DeviceLoader(images, labels, batch_size=32, seed=seed)
        parts = list(batches.epoch(epoch))
        assert [len(part) for part in parts] == [32, 32, 32, 4]
        assert all(map(torch.equal, batches.epoch(epoch, start=2), parts[2:]))
        return torch.cat(parts).tolist()

    assert order(1, 1) == order(1, 1)
    assert sorted(order(1, 1)) == list(range(100))
    assert len({tuple(order(seed, epoch)) for seed in (1, 2) for epoch in (1, 2)}) == 4
