"""The older name of `flux_training_module`: what is there is here too."""

from src.models import flux_training_module
from src.models.flux_training_module import FluxLoRATrainingModule, train_lora

__all__ = ["FluxLoRATrainingModule", "flux_training_module", "train_lora"]
