"""The GAN of DESIGN section 6 as a plain PyTorch loop: one process, whole batches, no DeepSpeed."""

from collections.abc import Iterator
from contextlib import closing

import torch
import torch.nn.functional as F

from smdt.config import AlignmentConfig
from smdt.data.loader import Batch, TrainLoader
from smdt.data.split import Split
from smdt.models.discriminator import Judgement
from smdt.stages.alignment import AlignmentStage
from smdt.telemetry.metrics import TrainingMetrics
from smdt.training.run_folder import RunFolder


def training_batches(config: AlignmentConfig, count: int) -> Iterator[Batch]:
    """The first global batches of a run, whole."""
    loader = TrainLoader(
        Split.open(config.data.shards, config.data.split),
        config.data,
        views=AlignmentStage.views,
        global_batch=config.batch.global_batch,
        seed=config.run.seed,
        rank=0,
        world_size=1,
        device=torch.device("cpu"),
        quarantine=RunFolder(config.run.out).quarantine,
        metrics=TrainingMetrics("test", "alignment", 0),
    )
    with closing(loader.stream(loader.start, 1 + count // loader.steps_per_epoch)) as stream:
        for _, batch in zip(range(count), stream, strict=False):
            yield batch


class PlainGan:
    """A stage's networks with Adam and the losses written out.

    Args:
        stage: whose networks are trained, in place.
        config: of the run; no augmentation.
    """

    def __init__(self, stage: AlignmentStage, config: AlignmentConfig) -> None:
        self.stage = stage
        self.generators, self.discriminators = stage.generators, stage.discriminators
        self.loops = config.model.feedback_loops
        self.chain = config.model.arrangement == "chain"
        self.weights = config.loss
        adam = config.optimizer
        self.g_adam, self.d_adam = (
            torch.optim.Adam(
                net.parameters(), lr=adam.learning_rate, betas=adam.betas, eps=adam.epsilon
            )
            for net in (self.generators, self.discriminators)
        )

    def step(self, batch: Batch) -> dict[str, float]:
        """One step of the discriminators, one of the generators; return the losses."""
        views = self.stage.inputs(batch, slice(0, len(batch.sample_ids)))
        self.d_adam.zero_grad()
        d_loss = 0.0
        for seg, ground in self.generated(views.aerial):
            seg, ground = seg.detach(), ground.detach()
            d1 = self.scores(views, seg, ground)
            of_true = (cross_entropy(d1["seg"], 1) + cross_entropy(d1["ground"], 1)) / 2
            of_made = (cross_entropy(d1["made seg"], 0) + cross_entropy(d1["made ground"], 0)) / 2
            d_loss = d_loss + (of_true + of_made) / self.loops
        d_loss.backward()
        self.d_adam.step()

        self.g_adam.zero_grad()
        g_loss = l1_seg = l1_image = 0.0
        for seg, ground in self.generated(views.aerial):
            now = self.scores(views, seg, ground)
            adversarial = cross_entropy(now["made seg"], 1) + cross_entropy(now["made ground"], 1)
            distances = []
            for made, true, classes in zip(seg, views.segmentation, views.classes, strict=True):
                distances.append((made - true).abs()[:, classes != 255].mean())
            l1_seg = l1_seg + torch.stack(distances).mean() / self.loops
            l1_image = l1_image + (ground - views.ground).abs().mean() / self.loops
            g_loss = g_loss + adversarial / self.loops
        g_loss = g_loss + self.weights.l1_segmentation * l1_seg + self.weights.l1_image * l1_image
        g_loss.backward()
        self.g_adam.step()
        return {
            "loss": float(g_loss.detach()),
            "discriminators": float(d_loss.detach()),
            "l1_segmentation": float(l1_seg.detach()),
            "l1_image": float(l1_image.detach()),
        }

    def generated(self, aerial: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """What the generators make in each loop."""
        made = [self.generators(aerial)]
        while len(made) < self.loops:
            features = self.discriminators.feedback(aerial, *(x.detach() for x in made[-1]))
            made.append(self.generators(aerial, *features))
        return made

    def scores(self, views, seg: torch.Tensor, ground: torch.Tensor) -> dict[str, list]:
        """`real + <embed, true partner's embed>` of four pairs, judged one by one."""
        condition = seg if self.chain else views.aerial
        dtype = next(self.discriminators.parameters()).dtype

        def d1(image: torch.Tensor) -> Judgement:
            pair = torch.cat([views.aerial, image], dim=1).to(dtype)
            return Judgement(*self.discriminators.of_segmentation(pair))

        def d2(image: torch.Tensor) -> Judgement:
            pair = torch.cat([condition, image], dim=1).to(dtype)
            return Judgement(*self.discriminators.of_ground(pair))

        true_seg, true_ground = d1(views.segmentation), d2(views.ground)
        return {
            "seg": tied(true_seg, true_ground),
            "ground": tied(true_ground, true_seg),
            "made seg": tied(d1(seg), true_ground),
            "made ground": tied(d2(ground), true_seg),
        }


def tied(judged: Judgement, partner: Judgement) -> list[torch.Tensor]:
    pairs = zip(judged.real, judged.embedding, partner.embedding, strict=True)
    return [real[:, 0] + torch.einsum("behw,behw->bhw", a, b) for real, a, b in pairs]


def cross_entropy(scores: list[torch.Tensor], label: int) -> torch.Tensor:
    """Mean over scales."""
    target = float(label)
    losses = [F.binary_cross_entropy_with_logits(s, torch.full_like(s, target)) for s in scores]
    return sum(losses) / len(losses)
