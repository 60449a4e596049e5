"""The loss over ranks, with places that several pairs show, against plain loops in float64."""

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F

from smdt.losses.contrastive import InfoNceConfig, SoftMarginConfig, gathered_contrastive_loss
from smdt.training.ranks.environment import free_port

BATCH, DIM, SCALE, GAMMA = 12, 8, 7.0, 10.0
SHOWN = np.full((BATCH, 3), -1)
SHOWN[:, 0] = range(BATCH)
# Of panorama 0 tile 7 is right as well, of panorama 8 tiles 1 and 2, of panorama 5 tile 4.
SHOWN[0, 1], SHOWN[8, 1:], SHOWN[5, 2] = 7, (1, 2), 4
CONFIGS = {
    "soft_margin": SoftMarginConfig(gamma=GAMMA),
    "info_nce": InfoNceConfig(name="info_nce", label_smoothing=0.0),
}


def descriptors() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    made = torch.randn(2, BATCH, DIM, generator=generator, dtype=torch.float64)
    return list(F.normalize(made, dim=-1).unbind())


def plain_loss(name: str, ground: torch.Tensor, aerial: torch.Tensor, scale: torch.Tensor):
    """Both directions, one query after the other; what shows its place is no negative."""
    total = torch.zeros((), dtype=torch.float64)
    for queries, gallery, is_right in (
        (ground, aerial, lambda query, item: item in SHOWN[query]),
        (aerial, ground, lambda query, item: query in SHOWN[item]),
    ):
        for i in range(BATCH):
            wrong = [j for j in range(BATCH) if j != i and not is_right(i, j)]
            cosine = gallery @ queries[i]
            if name == "soft_margin":
                margins = 2 * (cosine[wrong] - cosine[i])
                total = total + F.softplus(GAMMA * margins).sum() / (2 * BATCH * (BATCH - 1))
            else:
                logits = scale * cosine[[i, *wrong]]
                total = total - logits.log_softmax(0)[0] / (2 * BATCH)
    return total


def rank_main(rank: int, ranks: int, port: int, name: str, out) -> None:
    address = f"tcp://127.0.0.1:{port}"
    dist.init_process_group("gloo", init_method=address, rank=rank, world_size=ranks)
    share = slice(rank * BATCH // ranks, (rank + 1) * BATCH // ranks)
    ground, aerial = (view[share] for view in descriptors())
    scale = torch.tensor([SCALE], dtype=torch.float64)
    halves = [slice(0, len(ground) // 2), slice(len(ground) // 2, None)]
    scalars = [scale] if name == "info_nce" else []
    chunks = [(ground[half], aerial[half], *scalars) for half in halves]
    loss, gradient = gathered_contrastive_loss(CONFIGS[name], chunks, SHOWN[share])
    out[rank] = (
        float(loss),
        gradient.ground,
        gradient.aerial,
        [float(s) for s in gradient.scalars],
    )
    dist.barrier()
    dist.destroy_process_group()


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 2, 3])
@pytest.mark.parametrize("name", CONFIGS)
def test_ranks_together_have_the_loss_and_gradient_of_plain_loops(name, ranks):
    with mp.Manager() as manager:
        out = manager.dict()
        mp.spawn(rank_main, args=(ranks, free_port(), name, out), nprocs=ranks)
        shares = [out[rank] for rank in range(ranks)]
    ground, aerial = (view.requires_grad_() for view in descriptors())
    scale = torch.tensor([SCALE], dtype=torch.float64, requires_grad=True)
    expected = plain_loss(name, ground, aerial, scale)
    expected.backward()
    assert sum(loss for loss, *_ in shares) == pytest.approx(float(expected.detach()), rel=1e-6)
    for view, truth in ((1, ground.grad), (2, aerial.grad)):
        found = torch.cat([share[view] for share in shares])
        torch.testing.assert_close(found, truth, rtol=1e-5, atol=1e-8)
    if name == "info_nce":
        assert sum(s for *_, (s,) in shares) == pytest.approx(float(scale.grad), rel=1e-5)
