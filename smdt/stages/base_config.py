"""The sections that the configurations of all stages have."""

import yaml

from smdt.config_file import escaped
from smdt.models.towers.weights import InitConfig
from smdt.telemetry.exporter import TelemetryConfig
from smdt.training.deepspeed.optimizer import OptimizerConfig
from smdt.training.deepspeed.settings import Precision
from smdt.training.loop.trainer import TrainerConfig


class Config(TrainerConfig):
    """One stage of one run: the sections that every stage has."""

    stage: str
    """Stage of the method."""
    optimizer: OptimizerConfig = OptimizerConfig()
    init: InitConfig = InitConfig()
    precision: Precision = "bf16"
    """Arithmetic of forward and backward; the optimizer's state is always fp32."""
    telemetry: TelemetryConfig = TelemetryConfig()

    def to_yaml(self) -> str:
        """Return the resolved configuration; `load` of it gives the same."""
        content = escaped(self.model_dump(mode="json", by_alias=True))
        text: str = yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
        return text
