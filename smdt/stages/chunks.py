"""How a rank cuts its share of a global batch."""


def equal_slices(count: int, parts: int) -> list[slice]:
    """Return `parts` equal slices of `count` rows, which `parts` must divide (pure)."""
    assert count % parts == 0, "the configuration is checked before the run starts"
    length = count // parts
    return [slice(part * length, (part + 1) * length) for part in range(parts)]
