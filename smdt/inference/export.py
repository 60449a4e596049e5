"""A trained model for others: a checkpoint without DeepSpeed's states, and a card about it.

The folder is a checkpoint to every command that takes one, and `init.weights` of other runs.
"""

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from data_shards.base.atomic import unpublished_folder, write_atomic
from data_shards.base.errors import InputError
from data_shards.base.store import require_local
from smdt.evaluation.outcomes import score_text
from smdt.stages.base_config import Config
from smdt.stages.retrieval.config import RetrievalConfig
from smdt.stages.trained import load_stage
from smdt.stages.weights import resolve_checkpoint
from smdt.training.checkpoints import checkpoint
from smdt.training.checkpoints.run_folder import RunFolder
from smdt.training.loop.stage import Stage

CARD = "README.md"

USES: Mapping[str, str] = {
    "retrieval": (
        "smdt embed {here} --shards DATA --out GALLERY{options}\n"
        "smdt locate PHOTO --gallery GALLERY"
    ),
    "alignment": "smdt align --shards DATA --out NEW --checkpoint {here}",
    "segmentation": "smdt segment --shards DATA --out NEW --checkpoint {here}",
}
"""Commands that use a model, by its stage; `options` are the additional ones that embedding
needs."""


def export_model(trained: Path, out: Path) -> Path:
    """Write the weights, the configuration and the card of a run or a checkpoint.

    Args:
        trained: run or checkpoint.
        out: a folder that is not there yet.

    Returns:
        The card.

    Raises:
        InputError: there is no checkpoint, or `out` is there or can't be written.
    """
    require_local(out, "--out")
    if os.path.lexists(out):
        raise InputError(f"--out {out} exists: name a new folder")
    folder = resolve_checkpoint(trained)
    config, stage = load_stage(folder)
    try:
        with unpublished_folder(out) as unpublished:
            for name in (checkpoint.WEIGHTS, checkpoint.CONFIG):
                shutil.copyfile(folder / name, unpublished / name)
            text = card(out.name, config, stage, evaluation_of(folder))
            write_atomic(unpublished / CARD, text.encode())
            checkpoint.publish(unpublished, out)
    except OSError as error:
        raise InputError(f"--out {out} can't be written: {error.strerror}") from None
    return out / CARD


def evaluation_of(folder: Path) -> Mapping[str, Any] | None:
    """Return a run's evaluation if it is of this very checkpoint of the run."""
    path = RunFolder(folder.parent.parent).evaluation
    try:
        content: Mapping[str, Any] = json.loads(path.read_text())
    except (OSError, json.JSONDecodeError):
        return None
    step = checkpoint.named_step(folder)
    return content if step is not None and content.get("step") == step else None


def card(name: str, config: Config, stage: Stage, evaluation: Mapping[str, Any] | None) -> str:
    """Return a model card in Markdown (pure).

    Args:
        name: of the model.
        config: that it was trained by.
        stage: with its modules.
        evaluation: content of `evaluation.json`, None where there is none of these weights.
    """
    counts = {
        module: sum(p.numel() for p in each.parameters())
        for module, each in stage.modules().items()
    }
    facts = [
        ("stage", config.stage),
        ("run", config.run.name),
        ("trained on", f"split {config.data.split} of {config.data.shards}"),
        ("schedule", f"{config.schedule.length}, {config.batch.global_batch} samples a step"),
        ("precision", config.precision),
        ("parameters", ", ".join(f"{module} {count:,}" for module, count in counts.items())),
        *_retrieval_facts(config),
    ]
    if evaluation is None:
        scores = "None of these weights is known here: `smdt evaluate` measures them."
    else:
        rows = [
            f"| {key} | {score_text(key, value)} |" for key, value in evaluation["scores"].items()
        ]
        title = f"{evaluation.get('protocol', '')}, {evaluation.get('shards', '')}".strip(", ")
        scores = "\n".join([f"| {title} | |", "|---|---|", *rows])
    front = yaml.safe_dump(
        {"library_name": "smdt", "tags": ["cross-view-geo-localization", config.stage]},
        sort_keys=False,
    )
    table = "\n".join(["| | |", "|---|---|", *(f"| {key} | {value} |" for key, value in facts)])
    return f"""---
{front}---

# {name}

{table}

`{checkpoint.CONFIG}` is the whole configuration, `{checkpoint.FILES}` has the files' SHA-256.

## Scores

{scores}

## Use

```
{_use(config, name)}
```

## Limits

It has learned what its training data shows: other countries, seasons, cameras and tiles of another
size are outside of that until measured. Who publishes it says under which licence, and whether that
of the data allows it.
"""


def _use(config: Config, name: str) -> str:
    generates = isinstance(config, RetrievalConfig) and config.alignment.checkpoint is not None
    options = " --alignment ALIGNMENT" if generates else ""
    return USES[config.stage].format(here=name, options=options)


def _retrieval_facts(config: Config) -> list[tuple[str, str]]:
    if not isinstance(config, RetrievalConfig):
        return []
    sizes = {view: "{}x{}".format(*size) for view, size in config.image_sizes.items()}
    narrowest, widest = config.augment.fov_deg
    aligned_by = config.alignment.sha256
    return [
        ("backbone", config.model.backbone),
        ("ground image", sizes["ground"]),
        ("aerial image", f"{sizes['aerial']}, {config.aerial}"),
        ("fields of view", f"{narrowest:g} to {widest:g} degrees"),
        *([] if aligned_by is None else [("aligned by", f"weights with SHA-256 {aligned_by}")]),
    ]
