"""DeepSpeed's universal form of a checkpoint, which any number of ranks can load.

ZeRO cuts the optimizer's state into one part a rank; the universal form holds it by parameter.
"""

import contextlib
import io
from argparse import Namespace
from pathlib import Path

from smdt.training.deepspeed.patches import padding_kept


def convert(source: Path, target: Path, zero_stage: int) -> None:
    """Convert the state of one engine; needs no process group.

    Args:
        source: what the ranks wrote.
        target: a folder to make.
        zero_stage: of those ranks, 1 to 3.
    """
    from deepspeed.checkpoint import ds_to_universal

    arguments = Namespace(
        input_folder=str(source),
        output_folder=str(target),
        num_extract_workers=1,
        num_merge_workers=1,
        keep_temp_folder=False,
        strict=True,
        # What parts of tensor parallelism look like, of which there is none.
        inject_missing_state=zero_stage < 3,
    )
    said = io.StringIO()
    with padding_kept(), contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        ds_to_universal.main(arguments)
    (target.parent / "latest_universal").unlink()
