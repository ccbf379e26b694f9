"""The named choices of a job's configuration, each with what it means. Names are those of the contract."""

from __future__ import annotations

from enum import StrEnum


class SigmaSampling(StrEnum):
    """How noise levels sigma in (0, 1] are drawn; 1 is pure noise (`sigmas.py`)."""

    UNIFORM = "UNIFORM"
    """Each of `timesteps` equally spaced levels alike."""
    LOGIT_NORMAL = "LOGIT_NORMAL"
    """sigmoid of a normal with `sigma_mean` and `sigma_std`: middle levels more often."""
    RESOLUTION_SHIFT = "RESOLUTION_SHIFT"
    """LOGIT_NORMAL shifted towards noise with the number of image tokens, as FLUX samples."""
    STATIC_SHIFT = "STATIC_SHIFT"
    """LOGIT_NORMAL shifted towards noise by `sigma_shift`: s sigma / (1 + (s - 1) sigma)."""
    MODE = "MODE"
    """Mode sampling of the Stable Diffusion 3 paper: the middle more often the larger `sigma_mode_scale` is."""
    COSMAP = "COSMAP"
    """CosMap of the Stable Diffusion 3 paper: 1 - 1 / (tan(pi u / 2) + 1) for even u."""
    CUBIC_CONTENT = "CUBIC_CONTENT"
    """1 - u^3 for even u: levels near noise, where composition is decided, more often."""
    CUBIC_STYLE = "CUBIC_STYLE"
    """u^3 for even u: levels near the image, where texture is decided, more often."""
    BETA = "BETA"
    """The beta distribution with `sigma_beta_a` and `sigma_beta_b`."""


class TargetPreset(StrEnum):
    """Which layers of the transformer are adapted (`targets.py`)."""

    IMAGE_STREAM = "IMAGE_STREAM"
    """Attention and feed-forward of the image stream and the single-stream blocks."""
    IMAGE_AND_TEXT_STREAM = "IMAGE_AND_TEXT_STREAM"
    """IMAGE_STREAM, and the same layers of the text stream."""
    ATTENTION = "ATTENTION"
    """The projections of attention in both streams and the single-stream blocks."""
    ALL_LINEAR = "ALL_LINEAR"
    """Every linear layer in the blocks, modulation too."""


class LossWeighting(StrEnum):
    """How much each noise level counts in the loss."""

    NONE = "NONE"
    """Each alike."""
    BELL = "BELL"
    """A bell around 0.5 that is 0 at both ends; 1 on average over uniform levels."""
    SIGMA_SQRT = "SIGMA_SQRT"
    """sigma^-2: levels near the image count most."""
    COSMAP = "COSMAP"
    """2 / (pi (1 - 2 sigma + 2 sigma^2)), as in the Stable Diffusion 3 paper."""


class LossFunction(StrEnum):
    """What is made of the error of the velocity."""

    MSE = "MSE"
    """Its square."""
    MAE = "MAE"
    """Its absolute value."""
    HUBER = "HUBER"
    """Its square where it is under `huber_delta`, growing linearly beyond, so that outliers count less."""


class HuberSchedule(StrEnum):
    """How `huber_delta` changes with the noise level."""

    CONSTANT = "CONSTANT"
    """Not at all."""
    EXPONENTIAL = "EXPONENTIAL"
    """huber_delta ^ sigma: from 1 at the image to `huber_delta` at pure noise."""
    SNR = "SNR"
    """huber_delta + (1 - huber_delta) (1 - sigma)^2: the same ends, by the ratio of signal to noise."""


class GuidanceMode(StrEnum):
    """What the transformer's embedding of the guidance scale is told while training."""

    BYPASS = "BYPASS"
    """Nothing: the embedding is left out, so that the adapter learns the data itself."""
    FIXED = "FIXED"
    """`guidance_scale`."""
    SAMPLED = "SAMPLED"
    """For each sample a value drawn evenly between `guidance_scale` and `guidance_scale_max`."""


class Optimizer(StrEnum):
    """What turns gradients into changes of the weights."""

    ADAMW = "ADAMW"
    """AdamW."""
    ADAMW_8BIT = "ADAMW_8BIT"
    """AdamW with its state in 8 bits (bitsandbytes): a quarter of the memory."""
    PRODIGY = "PRODIGY"
    """Prodigy, which finds its own learning rate; `learning_rate` is a factor of it, 1 by default."""
    ADAFACTOR = "ADAFACTOR"
    """Adafactor: no momentum, and little memory."""
    LION = "LION"
    """Lion: steps of one size; wants a learning rate three to ten times lower than AdamW's."""
    ADAMW_SCHEDULE_FREE = "ADAMW_SCHEDULE_FREE"
    """AdamW that averages its weights in place of a schedule."""


class LearningRateSchedule(StrEnum):
    """How the learning rate goes on after the warm-up."""

    CONSTANT = "CONSTANT"
    """It stays."""
    COSINE = "COSINE"
    """It falls along half a cosine."""
    COSINE_WITH_RESTARTS = "COSINE_WITH_RESTARTS"
    """It falls so `schedule_cycles` times."""
    LINEAR = "LINEAR"
    """It falls along a line."""
    POLYNOMIAL = "POLYNOMIAL"
    """It falls along a line to the power of `schedule_power`."""


class AdapterType(StrEnum):
    """What is added to a layer."""

    LORA = "LORA"
    """The product of two thin matrices."""
    DORA = "DORA"
    """LoRA with the length of each output's weights learnt apart from their direction."""
    LOKR = "LOKR"
    """Kronecker product of a small matrix and a larger one of low rank."""
    LOHA = "LOHA"
    """Element by element product of two products of thin matrices."""


class InitWeights(StrEnum):
    """What the adapter begins with; the model's output is the base's in any case."""

    KAIMING = "KAIMING"
    """A uniform as Kaiming has it, B zero."""
    GAUSSIAN = "GAUSSIAN"
    """A normal with spread 1 / rank, B zero."""
    PISSA = "PISSA"
    """Both from the main singular vectors of the base's weights, which give up that part while the job runs. The file
    is that of a LoRA with twice the rank."""


class FileDtype(StrEnum):
    """Precision of the numbers in the LoRA files."""

    FP32 = "FP32"
    """32 bits, as trained."""
    BF16 = "BF16"
    """16 bits with the range of 32: half the size."""
    FP16 = "FP16"
    """16 bits with more digits and less range: half the size."""
