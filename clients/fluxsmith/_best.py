"""Which file of a job is offered first: that of the best step, where it is worth more than the last one."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:  # it draws itself with this
    from fluxsmith.training import TrainingJob

LORA = "lora.safetensors"


def better_file(job: "TrainingJob") -> str:
    """Return the name of the best step's file where that is neither the last step nor before the first, else nothing.

    The adapter from before the first step would do nothing that was not there before.
    """
    result = job.result
    if result is None or not result.best_step or result.best_artifact_name == LORA:
        return ""
    return result.best_artifact_name


def file_facts(job: "TrainingJob") -> dict[str, str]:
    """Return the addresses of the job's adapters, the best step's first, with what each is if there are two."""
    result = job.result
    if result is None:
        return {}
    better = better_file(job)
    if not better:
        return {"LoRA": result.lora_uri}
    addresses = {artifact.artifact_name: artifact.uri for artifact in result.artifacts}
    return {
        "best LoRA": f"{addresses.get(better, better)} (best step, {result.best_step})",
        "LoRA": f"{result.lora_uri} (last step, {job.step})",
    }
