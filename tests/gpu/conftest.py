"""What only a GPU can show: `make gpu-check`."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch


def pytest_collection_modifyitems(items: Sequence[pytest.Item]) -> None:
    """Everything here needs a GPU."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.gpu)


@pytest.fixture(autouse=True)
def gpu() -> torch.device:
    """The first GPU."""
    if not torch.cuda.is_available():
        pytest.skip("no GPU; `smdt doctor` says why")
    return torch.device("cuda", 0)
