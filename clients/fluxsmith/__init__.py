"""fluxsmith: LoRA training for FLUX.1 from Python.

import fluxsmith

with fluxsmith.Client() as client:
    dataset = client.datasets.create_from_folder("my-style/")
    job = client.train(dataset, rank=16, steps=200)
    for event in job.watch():
        print(event)
    job.download("my-style.safetensors")

`AsyncClient` is the same for asyncio.
"""

from importlib.metadata import version

from fluxsmith import errors
from fluxsmith._async.client import AsyncClient
from fluxsmith._async.datasets import AsyncDatasets
from fluxsmith._async.jobs import AsyncJobHandle
from fluxsmith._folder import FolderImages, LeftOut, read_folder
from fluxsmith._pictures import Picture, PilImage
from fluxsmith._sources import Source
from fluxsmith.artifacts import Artifact, DownloadLink
from fluxsmith.capabilities import Capabilities
from fluxsmith.checkpoints import Checkpoint
from fluxsmith.choices import (
    AdapterType,
    FileDtype,
    GuidanceMode,
    HuberSchedule,
    InitWeights,
    LearningRateSchedule,
    LossFunction,
    LossWeighting,
    Optimizer,
    SigmaSampling,
    TargetPreset,
)
from fluxsmith.client import Client
from fluxsmith.data import (
    CaptionedImage,
    Dataset,
    DatasetPhase,
    DatasetProgress,
    DatasetState,
    Sample,
    SampleProblem,
    SampleProblemReason,
)
from fluxsmith.datasets import Datasets
from fluxsmith.encoding import AlphaPolicy, ContactSheet, EncodingOptions, EncodingProgress, LatentForm
from fluxsmith.errors import FluxsmithError
from fluxsmith.events import (
    ArtifactPublished,
    CheckpointWritten,
    Event,
    JobWarning,
    PreviewRendered,
    StateChanged,
    StepMetrics,
    StepsCompleted,
    ValidationCompleted,
)
from fluxsmith.jobs import JobHandle
from fluxsmith.keywords import EncodingKeywords, TrainKeywords
from fluxsmith.memory import EstimatedModel, MemoryEstimate, MemoryMeasurement, MemoryPart, MemorySaving
from fluxsmith.policies import Deadlines, RetryPolicy
from fluxsmith.training import (
    Fault,
    JobFailure,
    JobState,
    TrainConfig,
    TrainingJob,
    TrainingResult,
)

__version__ = version("fluxsmith")

__all__ = [
    "AdapterType",
    "AlphaPolicy",
    "Artifact",
    "ArtifactPublished",
    "AsyncClient",
    "AsyncDatasets",
    "AsyncJobHandle",
    "Capabilities",
    "CaptionedImage",
    "Checkpoint",
    "CheckpointWritten",
    "Client",
    "ContactSheet",
    "Dataset",
    "DatasetPhase",
    "DatasetProgress",
    "DatasetState",
    "Datasets",
    "Deadlines",
    "DownloadLink",
    "EncodingKeywords",
    "EncodingOptions",
    "EncodingProgress",
    "EstimatedModel",
    "Event",
    "Fault",
    "FileDtype",
    "FluxsmithError",
    "FolderImages",
    "GuidanceMode",
    "HuberSchedule",
    "InitWeights",
    "JobFailure",
    "JobHandle",
    "JobState",
    "JobWarning",
    "LatentForm",
    "LearningRateSchedule",
    "LeftOut",
    "LossFunction",
    "LossWeighting",
    "MemoryEstimate",
    "MemoryMeasurement",
    "MemoryPart",
    "MemorySaving",
    "Optimizer",
    "Picture",
    "PilImage",
    "PreviewRendered",
    "RetryPolicy",
    "Sample",
    "SampleProblem",
    "SampleProblemReason",
    "SigmaSampling",
    "Source",
    "StateChanged",
    "StepMetrics",
    "StepsCompleted",
    "TargetPreset",
    "TrainConfig",
    "TrainKeywords",
    "TrainingJob",
    "TrainingResult",
    "ValidationCompleted",
    "__version__",
    "errors",
    "read_folder",
]
