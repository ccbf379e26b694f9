"""Training under the names of `src.models`, with fluxsmith's services behind them: see docs/compat.md."""

from src.models import flux_training_module, flux_training_utils, training_module
from src.models.errors import InvalidImageFormat, OutOfMemory, TextEncodingFailed
from src.models.flux_training_dataset import FluxTrainingDataset
from src.models.flux_training_module import FluxLoRATrainingModule
from src.models.settings import Settings

__all__ = [
    "FluxLoRATrainingModule",
    "FluxTrainingDataset",
    "InvalidImageFormat",
    "OutOfMemory",
    "Settings",
    "TextEncodingFailed",
    "flux_training_module",
    "flux_training_utils",
    "training_module",
]
