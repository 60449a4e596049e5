"""Semantic segmentation by any network that Hugging Face's transformers has for it.

From a local folder or from scratch, never from a hub; weights are safetensors, never pickles.
transformers is imported where it is used: that takes seconds.

B batch, L labels of the network, K our classes, H rows, W columns.
"""

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import torch
import torch.nn.functional as F
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    PositiveFloat,
    ValidationError,
    field_validator,
)
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm as BatchNorm

from data_shards.base.errors import InputError
from data_shards.base.text import read_text
from data_shards.format.classes import CLASS_COUNT
from data_shards.format.manifest import first_problem
from smdt.geometry.view import normalise
from smdt.models.batch_norm import FixedBatchNorm, SampleNorm, replace_batch_norms
from smdt.models.mixed_precision import casting, computes_with_buffers
from smdt.models.normalisation import NORMALISATIONS
from smdt.models.trial import one_line, output_shape
from smdt.semantics.labels import CLASSES, groups

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

SMALLEST_SIDE = 32
"""Pixels: networks reduce an image by 32."""

MASK_CLASSIFIERS = ("maskformer", "mask2former")
SMALLEST_SCORE = 1e-8

CONFIG = "config.json"
PREPROCESSOR = "preprocessor_config.json"

IMAGENET = NORMALISATIONS["imagenet"]


class SegmenterConfig(BaseModel):
    """The network. The default is SegFormer of B0's size (Xie et al. 2021), from scratch.

    Statistics of a batch would make a step depend on how the batch is cut: batch norms keep those
    of the folder, or are group norms where it has none.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    folder: str | None = None
    """Hugging Face folder to start from: `config.json`, `model.safetensors`; a head of other
    labels is replaced."""
    architecture: str = "segformer"
    """Hugging Face's name of the network type, used without a folder."""
    settings: dict[str, Any] = {}
    """Keys of the network's own configuration that are to be others."""
    image_size: tuple[int, int] = (128, 512)
    """Rows and columns that panoramas are resized to."""

    @field_validator("image_size")
    @classmethod
    def _as_large_as_a_network_can_see(cls, size: tuple[int, int]) -> tuple[int, int]:
        if min(size) < SMALLEST_SIDE:
            raise ValueError(f"{size[0]}x{size[1]} is too small: {SMALLEST_SIDE} is the least")
        return size


def _for_each_channel(value: object) -> object:
    return (value,) * 3 if isinstance(value, int | float) else value


class _Preprocessor(BaseModel):
    """Pixel normalization of `preprocessor_config.json`, for pixels 0 to 1."""

    do_flip_channel_order: bool | None = None
    do_normalize: bool | None = True
    image_mean: Annotated[tuple[float, float, float] | None, BeforeValidator(_for_each_channel)] = (
        None
    )
    image_std: Annotated[
        tuple[PositiveFloat, PositiveFloat, PositiveFloat] | None,
        BeforeValidator(_for_each_channel),
    ] = None


class Segmenter(nn.Module):
    """Images to logits of our classes, each as large as its image.

    A class of ours that groups several labels has the sum of their probabilities: a pixel torn
    between car and truck is a vehicle.

    Args:
        network: transformers' model.
        classes: our class of each of its labels, [L].
        mean: red, green, blue of the images it expects, 0 to 255.
        std: the same.
    """

    def __init__(
        self,
        network: "PreTrainedModel",
        classes: Sequence[int],
        mean: Sequence[float] = IMAGENET.mean,
        std: Sequence[float] = IMAGENET.std,
    ) -> None:
        super().__init__()
        self.network = network
        self._mean, self._std = mean, std
        self._mixes = computes_with_buffers(network)
        self._members = [
            [label for label, group in enumerate(classes) if group == k] for k in range(CLASS_COUNT)
        ]

    def forward(self, images: Tensor) -> tuple[Tensor]:
        """Segment images [B, 3, H, W] with values 0 to 255.

        Returns:
            One tensor: log-probabilities up to a constant of a pixel, float32 [B, K, H, W].
        """
        dtype = next(self.network.parameters()).dtype
        inputs = normalise(images, self._mean, self._std).to(dtype)
        with casting(inputs, self._mixes):
            logits_BLhw = label_logits(self.network(pixel_values=inputs))
        logits_BLHW = F.interpolate(logits_BLhw, images.shape[-2:], mode="bilinear")
        if all(members == [k] for k, members in enumerate(self._members)):
            return (logits_BLHW,)
        grouped = [logits_BLHW[:, members].logsumexp(dim=1) for members in self._members]
        return (torch.stack(grouped, dim=1),)


def label_logits(output: Mapping[str, Tensor]) -> Tensor:
    """Return a network's logits of its labels, float32 [B, L, h, w].

    Mask classifiers (Cheng et al. 2022) give each of Q masks a class, or none: a label's score at a
    pixel is the sum over masks of the label's probability times the mask's.
    """
    if "masks_queries_logits" not in output:
        return output["logits"].float()
    label_BQL = output["class_queries_logits"].float().softmax(dim=-1)[..., :-1]
    mask_BQhw = output["masks_queries_logits"].float().sigmoid()
    score_BLhw = torch.einsum("bql,bqhw->blhw", label_BQL, mask_BQhw)
    return score_BLhw.clamp(min=SMALLEST_SCORE).log()


def class_map(logits_KHW: Tensor, size: tuple[int, int]) -> Tensor:
    """Return the most probable class of each pixel, uint8, for an image of `size`."""
    scaled = F.interpolate(logits_KHW.unsqueeze(0), size, mode="bilinear")
    return scaled[0].argmax(dim=0).to(torch.uint8)


def make_segmenter(config: SegmenterConfig) -> Segmenter:
    """Return a network for our classes, with a folder's weights or fresh ones.

    Raises:
        InputError: the folder, the architecture, a setting or the size of images is not usable.
    """
    segmenter = _make(config)

    def segment_blank(segmenter: Segmenter, device: torch.device) -> Tensor:
        logits: Tensor = segmenter(torch.zeros(1, 3, *config.image_size, device=device))[0]
        return logits

    try:
        output_shape(segmenter, segment_blank)
    except Exception as error:  # transformers' networks raise whatever a size leads them to
        rows, columns = config.image_size
        name = config.architecture if config.folder is None else config.folder
        raise InputError(
            f"model.image_size: {name} can't segment images of {rows}x{columns}: {one_line(error)}"
        ) from error
    return segmenter


def _make(config: SegmenterConfig) -> Segmenter:
    ours = {"id2label": dict(enumerate(CLASSES)), "label2id": {n: i for i, n in enumerate(CLASSES)}}
    if config.folder is not None:
        folder = Path(config.folder)
        network, _ = _pretrained(folder, {**config.settings, **ours})
        return Segmenter(network, range(CLASS_COUNT), *_normalisation(folder))
    from transformers import AutoModelForSemanticSegmentation

    settings = _settings(config)
    try:
        network = AutoModelForSemanticSegmentation.from_config(  # type: ignore[no-untyped-call]
            type(settings).from_dict({**settings.to_dict(), **config.settings, **ours})
        )
    except Exception as error:  # transformers raises whatever a wrong size leads it to
        raise InputError(
            f"model.settings: {config.architecture} can't be built with them: {one_line(error)}"
        ) from error
    replace_batch_norms(network, lambda _, norm: SampleNorm(norm))
    return Segmenter(network, range(CLASS_COUNT))


def open_folder(folder: Path) -> Segmenter:
    """Return the network of a Hugging Face folder, its labels grouped.

    Raises:
        InputError: the folder is not usable, lacks weights, or its labels are not Cityscapes' or
            ours.
    """
    network, fresh = _pretrained(folder, {})
    if fresh:
        raise InputError(
            f"{folder} has no weights for {fresh[0]} and {len(fresh) - 1} more of its network: "
            "train it first (model.folder)"
        )
    labels = network.config.id2label or {}
    try:
        classes = groups([str(name) for _, name in sorted(labels.items())])
    except ValueError as error:
        raise InputError(f"{folder}: {error}") from None
    return Segmenter(network, classes, *_normalisation(folder))


def used_files(folder: Path) -> list[Path]:
    """Return the files of a Hugging Face folder that decide what its network says."""
    described = [folder / name for name in (CONFIG, PREPROCESSOR) if (folder / name).is_file()]
    return [*described, *sorted(folder.glob("*.safetensors"))]


def _settings(config: SegmenterConfig) -> "PretrainedConfig":
    """The architecture's default configuration, once its name and the changed keys are checked."""
    from transformers import AutoConfig
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES as KNOWN,
    )

    if config.architecture not in KNOWN:
        (nearest,) = difflib.get_close_matches(config.architecture, KNOWN, n=1, cutoff=0.0)
        raise InputError(
            f"model.architecture: transformers has no semantic segmentation by "
            f"'{config.architecture}'; did you mean '{nearest}'?"
        )
    settings: PretrainedConfig = AutoConfig.for_model(config.architecture)
    for key in config.settings:
        if key not in settings.to_dict():
            (nearest,) = difflib.get_close_matches(key, settings.to_dict(), n=1, cutoff=0.0)
            raise InputError(
                f"model.settings: {config.architecture} has no '{key}'; did you mean '{nearest}'?"
            )
    return settings


def _pretrained(
    folder: Path, changes: Mapping[str, Any]
) -> tuple["PreTrainedModel", Sequence[str]]:
    """Open a folder's network; a batch norm that it has no statistics for is a group norm.

    Returns:
        The network, and the names of its weights that are not in the folder.

    Raises:
        InputError: the folder is not usable.
    """
    from transformers import (
        AutoConfig,
        AutoModelForSemanticSegmentation,
        AutoModelForUniversalSegmentation,
    )

    if not (folder / CONFIG).is_file():
        raise InputError(f"{folder} is not a Hugging Face folder: config.json is missing")
    try:
        described = AutoConfig.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
        masks = described.model_type in MASK_CLASSIFIERS
        auto = AutoModelForUniversalSegmentation if masks else AutoModelForSemanticSegmentation
        network, found = auto.from_pretrained(
            folder,
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            dtype=torch.float32,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
            **changes,
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise InputError(f"{folder} can't be used: {one_line(error)}") from error
    fresh = {*found["missing_keys"], *(name for name, *_ in found["mismatched_keys"])}

    def replaced(path: str, norm: BatchNorm) -> nn.Module:
        has_statistics = not {f"{path}.running_mean", f"{path}.running_var"} & fresh
        return FixedBatchNorm(norm) if has_statistics else SampleNorm(norm)

    replace_batch_norms(network, replaced)
    held = network.state_dict()
    return network, sorted(name for name in fresh if name in held)


def _normalisation(folder: Path) -> tuple[Sequence[float], Sequence[float]]:
    """Mean and deviation that a folder's network expects, 0 to 255; ImageNet's if it does not say.

    Raises:
        InputError: its description is damaged, or it expects blue before red.
    """
    path = folder / PREPROCESSOR
    if not path.is_file():
        return IMAGENET.mean, IMAGENET.std
    try:
        said = _Preprocessor.model_validate_json(read_text(path))
    except ValidationError as error:
        raise InputError(f"{path} can't be used: {first_problem(error)}") from None
    if said.do_flip_channel_order:
        raise InputError(f"{path}: do_flip_channel_order: networks that expect BGR are not read")
    if not said.do_normalize:
        return (0.0,) * 3, (255.0,) * 3
    mean, std = said.image_mean, said.image_std
    return (
        IMAGENET.mean if mean is None else [255 * value for value in mean],
        IMAGENET.std if std is None else [255 * value for value in std],
    )
