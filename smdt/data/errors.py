"""What can be wrong with data, for the person who reads it."""

from typing import ClassVar

from data_shards.errors import UserError


class DataError(UserError):
    """The data cannot be read as the run needs it; one sentence for the user."""


class DataInputError(DataError):
    """The user named data that is not there, or that does not fit: exit 2."""

    exit_code: ClassVar[int] = 2
