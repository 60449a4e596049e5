"""`smdt evaluate`: scores of a trained model."""

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from data_shards.base.terminal import Terminal
from data_shards.console import write_json
from launcher.run.local import run_ranks
from smdt.cli.checkpoints import JsonOption
from smdt.cli.inference import AlignmentOption
from smdt.cli.ranks import local_plan


def evaluate(
    trained: Annotated[Path, typer.Argument(metavar="RUN_OR_CHECKPOINT")],
    shards: Annotated[str, typer.Option(help="Folder or URL of the data set.")],
    split: Annotated[
        str | None, typer.Option(help="Split of the data set; by default the protocol's.")
    ] = None,
    protocol: Annotated[
        str | None,
        typer.Option(
            help="pairs, cvusa, cvact_val, cvact_test, vigor_same, vigor_cross; by default the "
            "data set's."
        ),
    ] = None,
    fov: Annotated[
        float | None, typer.Option(help="Degrees of the panoramas that are left; else the run's.")
    ] = None,
    unknown_heading: Annotated[
        bool | None,
        typer.Option(
            "--unknown-heading/--known-heading",
            help="Turn each panorama by a random heading that the towers do "
            "not get; by default as the run.",
        ),
    ] = None,
    ranks: Annotated[int, typer.Option(min=1, help="Processes on this machine.")] = 1,
    max_missing: Annotated[int, typer.Option(help="Unreadable samples to tolerate.")] = 0,
    panogan_compat: Annotated[
        bool, typer.Option("--panogan-compat", help="SSIM, PSNR and SD as papers publish them.")
    ] = False,
    alignment: AlignmentOption = None,
    references_file: Annotated[
        Path | None,
        typer.Option("--references", help="Measure what the scores are worth; write it here."),
    ] = None,
    json_file: JsonOption = None,
) -> None:
    """Scores of a trained model on a split, such as the recall of retrieval."""
    from smdt.evaluation.outcomes import score_text
    from smdt.inference.rank import MODULE, EvaluateJob, evaluate_on_ranks
    from smdt.stages.registry import references
    from smdt.stages.trained import EvaluationOverrides, load_config
    from smdt.stages.weights import resolve_checkpoint

    asked = EvaluationOverrides(protocol, fov, unknown_heading)
    split = split or asked.split(shards)
    job = EvaluateJob(
        trained=trained,
        shards=shards,
        split=split,
        max_missing=max_missing,
        panogan_compat=panogan_compat,
        alignment=alignment,
        protocol=protocol,
        fov_deg=fov,
        unknown_heading=unknown_heading,
    )
    if ranks == 1:
        evaluation = job.evaluate()
    else:
        evaluation = evaluate_on_ranks(
            job, lambda arguments: run_ranks(local_plan(MODULE, arguments, ranks))
        )
    rows = {evaluation.protocol: dict(evaluation.scores)}
    if references_file is not None:
        config = asked.apply(load_config(resolve_checkpoint(trained), alignment))
        compared = references(config, shards, split)
        write_json(references_file, compared)
        rows |= compared
    table = Table("", *evaluation.scores, title=f"{trained} on {shards}")
    for name, scores in rows.items():
        known = (score_text(k, scores[k]) if k in scores else "" for k in evaluation.scores)
        table.add_row(name, *known)
    Terminal().print(table)
    if repeated := evaluation.details.get("repeated"):
        Terminal().print(
            f"{repeated} aerial images are in the gallery already: it has "
            f"{evaluation.details['gallery_size']} entries."
        )
    if json_file is not None:
        write_json(json_file, {"scores": dict(evaluation.scores), **evaluation.details})
