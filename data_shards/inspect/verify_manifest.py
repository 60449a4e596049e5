"""Check the manifest against the build's plan and the index parts."""

from collections import Counter
from collections.abc import Iterator
from itertools import chain

from data_shards.base.errors import InputError, ShardError
from data_shards.base.store import Location, exists, read_bytes
from data_shards.build.finalize import rejected_list
from data_shards.format import layout
from data_shards.format.classes import CLASS_NAMES
from data_shards.format.index import Rejection, read_summary
from data_shards.format.manifest import FORMAT_VERSION, Manifest, manifest_bytes
from data_shards.format.plan import BuildPlan
from data_shards.inspect.verify_shard import Damage, unreadable


def check_manifest(root: Location, manifest: Manifest) -> Iterator[Damage]:
    """Check the manifest's fields on the build; the shards of the data set are intact.

    Copies of data sets may come without the build's plan: then its share is not checked.
    """
    if exists(root / layout.PLAN):
        yield from _check_plan(root, manifest)
    if manifest.classes != CLASS_NAMES:
        yield _manifest("The class names are others.")


def check_list(root: Location, name: str, expected: bytes) -> Iterator[Damage]:
    """Whether a list that `finalize` writes has the content that it would write now."""
    try:
        if read_bytes(root / name) != expected:
            yield Damage(name, "", "", "count", "The list differs: finalize again.")
    except OSError as error:
        yield unreadable(name, "The list", error, " Finalize again.")


def check_bytes(root: Location, manifest: Manifest) -> Iterator[Damage]:
    """Whether the manifest is written as this version writes it; nothing else is wrong."""
    written = manifest.format_version == FORMAT_VERSION
    if written and read_bytes(root / layout.MANIFEST) != manifest_bytes(manifest):
        yield _manifest("It is not as it was written: finalize again.")


def _check_plan(root: Location, manifest: Manifest) -> Iterator[Damage]:
    try:
        plan = BuildPlan.load(root)
        rejections = {split: _rejections(root, plan, split) for split in plan.splits}
    except (ShardError, InputError) as error:
        yield Damage(layout.PLAN, "", "", "checksum", str(error))
        return
    rejected = {
        split: dict(sorted(Counter(each.reason for each in listed).items()))
        for split, listed in rejections.items()
    }
    said = {
        "name": (manifest.name, plan.name),
        "seed": (manifest.seed, plan.options.seed),
        "source": (manifest.source, plan.source),
        "options": (manifest.options, plan.options),
        "encoder": (manifest.encoder, plan.encoder),
        "made": (manifest.made, plan.made),
        "splits": (
            {name: (entry.kind, entry.rows) for name, entry in manifest.splits.items()},
            {name: (split.kind, split.rows) for name, split in plan.splits.items()},
        ),
        "rejected": ({name: entry.rejected for name, entry in manifest.splits.items()}, rejected),
    }
    for field, (ours, theirs) in said.items():
        if ours != theirs:
            yield _manifest(f"Its {field} is not that of {layout.PLAN} and the shards.")
    yield from check_list(
        root, layout.REJECTED, rejected_list(chain.from_iterable(rejections.values()))
    )


def _rejections(root: Location, plan: BuildPlan, split: str) -> list[Rejection]:
    parts = [layout.part_path(root, split, task.shard) for task in plan.tasks(split)]
    return [each for part in parts for each in read_summary(part).rejected]


def _manifest(detail: str) -> Damage:
    return Damage(layout.MANIFEST, "", "", "count", detail)
