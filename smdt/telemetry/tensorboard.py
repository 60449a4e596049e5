"""A run's curves as TensorBoard's event files, for those who look there."""

from collections.abc import Mapping
from pathlib import Path

from data_shards.base.errors import InputError
from data_shards.base.packages import require_package


class EventWriter:
    """Writer of curves; this one discards them, for runs without event files."""

    def step(self, step: int, groups: Mapping[str, Mapping[str, float]]) -> None:
        """Take what a step measured: values by name, by group."""

    def close(self) -> None:
        """Take no more."""


class TensorBoard(EventWriter):
    """Writes a scalar `group/name` for each value.

    Args:
        folder: of the event files.
        step: of the run when it starts or resumes; what an earlier process wrote after it is
            hidden, since it will be written again.

    Raises:
        InputError: the package is not installed.
    """

    def __init__(self, folder: Path, step: int) -> None:
        require_tensorboard()
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder), purge_step=step + 1)

    def step(self, step: int, groups: Mapping[str, Mapping[str, float]]) -> None:
        """Write the values of a step."""
        for group, values in groups.items():
            for name, value in values.items():
                self._writer.add_scalar(f"{group}/{name}", value, step)

    def close(self) -> None:
        """Write what has not been written yet."""
        self._writer.close()


def require_tensorboard() -> None:
    """Check that event files can be written.

    Raises:
        InputError: the package is not installed, or can't be imported.
    """
    description = "TensorBoard, which telemetry.tensorboard needs,"
    require_package("tensorboard", description, "smdt[tensorboard]")
    try:
        import torch.utils.tensorboard  # noqa: F401 (only whether it can be)
    except ImportError as error:
        raise InputError(f"{description} can't be imported: {error}") from error
