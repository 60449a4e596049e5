"""DeepSpeed's universal form of a checkpoint, which any number of ranks can load, and its cures.

ZeRO cuts the optimizer's state into one part a rank; the universal form holds it by parameter.
Beside `engine` the only module that knows DeepSpeed.
"""

import contextlib
import io
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import Any


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
    with _padding_kept(), contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        ds_to_universal.main(arguments)
    (target.parent / "latest_universal").unlink()


@contextlib.contextmanager
def _padding_kept() -> Iterator[None]:
    """Keep DeepSpeed from cutting off padding, which the conversion passes over anyway.

    The last rank is told the padding of a whole parameter group, though ranks before it may hold
    some: with a small group and many ranks it then cuts off more than it has.
    """
    from deepspeed.checkpoint.zero_checkpoint import ZeROCheckpoint

    strip = ZeROCheckpoint._strip_tensor_paddings
    ZeROCheckpoint._strip_tensor_paddings = lambda *_: None
    try:
        yield
    finally:
        ZeROCheckpoint._strip_tensor_paddings = strip


def give_every_rank_a_part(optimizer: Any) -> None:  # noqa: ANN401 (DeepSpeed has no types)
    """Let a rank whose part of a parameter group is all padding load the universal form too.

    DeepSpeed takes the number of steps from the group's first parameter on this rank, and fails
    where there is none. Nothing of one is as good. ZeRO 3 has no such groups.
    """
    from deepspeed.utils.tensor_fragment import fragment_address, tensor_fragment

    nothing = fragment_address(numel=0, start=0)
    parts = zip(
        getattr(optimizer, "bit16_groups", ()),
        getattr(optimizer, "single_partition_of_fp32_groups", ()),
        strict=True,
    )
    for index, (group, part) in enumerate(parts):
        if all(parameter._hp_mapping is None for parameter in group):
            group[0]._hp_mapping = tensor_fragment(
                lp_fragment=group[0].flatten()[:0],
                lp_fragment_address=nothing,
                hp_fragment=part[:0],
                hp_fragment_address=nothing,
                gradient_dict={},
                offload_gradient_dict={},
                use_offload=False,
                param_group_index=index,
            )
