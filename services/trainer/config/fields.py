"""Every field of a job's configuration, with meaning, unit, range and default."""

from __future__ import annotations

from typing import Annotated, Any

from fluxsmith_text import fault_of
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from services.trainer.config.choices import (
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


def as_text(text: str) -> str:
    """The text; raises `ValueError` for what no keyboard writes, and not every database can keep."""
    if fault := fault_of(text, lines=True):
        raise ValueError(fault)
    return text


Rank = Annotated[int, Field(ge=1, le=512)]
Prompt = Annotated[str, Field(max_length=2000), AfterValidator(as_text)]
Expression = Annotated[str, Field(max_length=200), AfterValidator(as_text)]


class ConfigFields(BaseModel):
    """Configuration of one job, each value in its range. The defaults are those for FLUX.1-dev."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    rank: int = Field(default=16, ge=1, le=512)
    """Rank of the LoRA matrices."""
    alpha: float = Field(default=16.0, gt=0, le=4096)
    """The adapter's output is scaled by alpha / rank."""
    learning_rate: float = Field(default=1e-4, gt=0, le=10)
    """Learning rate after the warm-up; with PRODIGY a factor, 1 unless given. Over 0.1 with PRODIGY only."""
    batch_size: int = Field(default=1, ge=1, le=64)
    """Samples a step, drawn from one bucket; the last batch of a bucket may be smaller."""
    steps: int | None = Field(default=None, ge=1, le=100_000)
    """Optimizer steps; None means that `epochs` tells the length."""
    epochs: int | None = Field(default=None, ge=1, le=10_000)
    """Times that every sample is seen; None means that `steps` tells the length, and 1 without either."""
    seed: int = Field(default=0, ge=0, lt=2**32)
    """Seed of noise, sigma, order and initial weights."""
    sigma_sampling: SigmaSampling = SigmaSampling.LOGIT_NORMAL
    """How noise levels are drawn."""
    targets: TargetPreset = TargetPreset.IMAGE_STREAM
    """Which layers are adapted."""
    warmup_steps: int = Field(default=0, ge=0, le=10_000)
    """Steps over which the learning rate rises linearly."""
    max_gradient_norm: float = Field(default=1.0, gt=0)
    """Largest norm of the gradient; larger ones are scaled down."""
    caption_dropout: float = Field(default=0.0, ge=0, le=1)
    """Share of samples trained with the empty caption."""
    gradient_checkpointing: bool = True
    """Recompute activations in the backward pass: less memory, about a third more time."""
    validation_interval_steps: int | None = Field(default=None, ge=1, le=100_000)
    """Steps between measurements on the held-out dataset; None means ten a run."""
    timesteps: int = Field(default=1000, ge=10, le=100_000)
    """Equally spaced noise levels that UNIFORM draws from; no draw is below 1 / timesteps."""
    sigma_mean: float = Field(default=0.0, ge=-10, le=10)
    """Mean of the normal distribution behind LOGIT_NORMAL and both shifts."""
    sigma_std: float = Field(default=1.0, gt=0, le=10)
    """Standard deviation of the normal distribution behind LOGIT_NORMAL and both shifts."""
    sigma_shift: float = Field(default=3.0, ge=0.01, le=100)
    """Shift of STATIC_SHIFT: over 1 towards noise."""
    sigma_mode_scale: float = Field(default=1.29, ge=-1, le=1.75)
    """Scale of MODE: 0 is uniform."""
    sigma_beta_a: float = Field(default=2.0, ge=0.1, le=50)
    """First parameter of BETA, which pulls towards noise."""
    sigma_beta_b: float = Field(default=2.0, ge=0.1, le=50)
    """Second parameter of BETA, which pulls towards the image."""
    sigma_min: float = Field(default=0.0, ge=0, lt=1)
    """Lowest noise level drawn; the distribution is cut off there."""
    sigma_max: float = Field(default=1.0, gt=0, le=1)
    """Highest noise level drawn; the distribution is cut off there."""
    sigma_stratified: bool = False
    """Spread the levels of a step's samples over equal shares of the distribution, for less noise in the gradient."""
    loss_weighting: LossWeighting = LossWeighting.NONE
    """How much each noise level counts in the loss."""
    loss_function: LossFunction = LossFunction.MSE
    """What is made of the error of the velocity."""
    huber_delta: float = Field(default=0.1, gt=0, le=1)
    """Error at which HUBER turns from square to linear."""
    huber_schedule: HuberSchedule = HuberSchedule.CONSTANT
    """How `huber_delta` changes with the noise level."""
    masked_loss: bool = True
    """Count only what the cached masks of the dataset leave; without masks everything counts."""
    unmasked_weight: float = Field(default=0.0, ge=0, le=1)
    """Weight of what a mask leaves out."""
    guidance: GuidanceMode = GuidanceMode.BYPASS
    """What the transformer's embedding of the guidance scale is told."""
    guidance_scale: float = Field(default=1.0, ge=0, le=100)
    """Guidance scale of FIXED, and the lowest of SAMPLED."""
    guidance_scale_max: float = Field(default=3.5, ge=0, le=100)
    """Highest guidance scale of SAMPLED."""
    gradient_accumulation_steps: int = Field(default=1, ge=1, le=1024)
    """Batches whose gradients make one optimizer step."""
    ema_decay: float = Field(default=0.0, ge=0, lt=1)
    """Decay a step of the exponential moving average of the adapter, which is then what is measured, previewed and
    published. 0 means no average."""
    max_skipped_steps: int = Field(default=10, ge=0, le=10_000)
    """A step whose loss or gradient is not finite is skipped; the job fails once more than this many in a row were."""
    optimizer: Optimizer = Optimizer.ADAMW
    """What turns gradients into changes of the weights."""
    weight_decay: float = Field(default=0.0001, ge=0, le=10)
    """Decoupled weight decay."""
    beta1: float | None = Field(default=None, ge=0, lt=1)
    """Decay of the optimizer's mean of gradients; not for ADAFACTOR. None means the optimizer's own: 0.9."""
    beta2: float | None = Field(default=None, ge=0, lt=1)
    """Decay of the optimizer's mean of squared gradients; not for ADAFACTOR. None means the optimizer's own: 0.999,
    with LION 0.99."""
    learning_rate_schedule: LearningRateSchedule = LearningRateSchedule.CONSTANT
    """How the learning rate goes on after the warm-up."""
    schedule_cycles: int = Field(default=2, ge=1, le=1000)
    """Times that COSINE_WITH_RESTARTS falls."""
    schedule_power: float = Field(default=1.0, gt=0, le=10)
    """Power of POLYNOMIAL; 1 is LINEAR."""
    final_learning_rate_ratio: float = Field(default=0.0, ge=0, le=1)
    """Learning rate at the end of a schedule that falls, as a share of `learning_rate`."""
    lora_plus_ratio: float = Field(default=1.0, ge=1, le=1000)
    """LoRA+: learning rate of the B matrices as a multiple of `learning_rate`."""
    adapter_type: AdapterType = AdapterType.LORA
    """What is added to a layer."""
    use_rslora: bool = False
    """rsLoRA: scale by alpha / sqrt(rank) instead of alpha / rank. LORA and DORA only."""
    adapter_dropout: float = Field(default=0.0, ge=0, lt=1)
    """Share of a layer's inputs that the adapter does not see in a step. LORA and DORA only."""
    target_regex: Annotated[str, AfterValidator(as_text)] = Field(default="", max_length=1000)
    r"""Regular expression that the full names of the modules to adapt match, such as
    `transformer_blocks\.\d+\.attn\.to_[qkv]`; takes the place of `targets`. Empty means `targets` decides."""
    rank_pattern: dict[Expression, Rank] = Field(default={}, max_length=100)
    """Ranks of single modules: a regular expression that full names match, and the rank of those; the first that
    matches counts, in alphabetical order. Empty means `rank` everywhere."""
    lokr_factor: int | None = Field(default=None, ge=2, le=1024)
    """Side of LoKr's smaller matrix. None means as square as the layer allows."""
    init_weights: InitWeights = InitWeights.KAIMING
    """What the adapter begins with."""
    warm_start_uri: str = Field(default="", max_length=1000)
    """Address of a LoRA file to begin with, as `lora_uri` of a result or from CreateAdapterUpload; its layers and
    rank must be those of the job. Empty means the adapter begins anew."""
    file_dtype: FileDtype = FileDtype.FP32
    """Precision of the numbers in the LoRA files."""
    kohya_file: bool = True
    """Also publish the adapter in the form that ComfyUI reads: a LORA as `lora.kohya.safetensors`, which is Forge's and
    InvokeAI's too, another type as `lora.comfyui.safetensors`."""
    tag_frequency: bool = False
    """Also write into the files how many captions have each tag between their commas, which other programs list;
    captions may be private."""
    held_out_share: float = Field(default=0.0, ge=0, le=0.5)
    """Share of the dataset's samples that is not trained on but measured on, in place of a held-out dataset; at
    least one sample."""
    early_stopping_patience: int = Field(default=0, ge=0, le=10_000)
    """End the run after this many measurements in a row that were not better; needs held-out data. 0 means never."""
    early_stopping_min_delta: float = Field(default=0.0, ge=0, le=100)
    """A measurement is better when it is lower by more than this."""
    preview_prompts: tuple[Prompt, ...] = Field(default=(), max_length=16)
    """Prompts of the pictures that are made while training, before the first step, every `preview_interval_steps`
    and at the end, each with the dataset's trigger word as captions have it. Empty means no pictures."""
    preview_interval_steps: int | None = Field(default=None, ge=1, le=100_000)
    """Steps between previews. None means 4 times a run."""
    preview_seed: int = Field(default=0, ge=0, lt=2**32)
    """Seed of every preview's noise."""
    preview_sampling_steps: int = Field(default=28, ge=1, le=200)
    """Steps in which a preview is sampled."""
    preview_guidance_scale: float = Field(default=3.5, ge=0, le=100)
    """Guidance scale of previews."""
    preview_height_px: int | None = Field(default=None, ge=32, le=2048, multiple_of=16)
    """Height of previews. None means that of most samples."""
    preview_width_px: int | None = Field(default=None, ge=32, le=2048, multiple_of=16)
    """Width of previews. None means that of most samples."""
    checkpoint_interval_steps: int | None = Field(default=None, ge=1, le=100_000)
    """Steps between checkpoints. None means one every few minutes, as the service is set."""
    checkpoints_kept: int | None = Field(default=None, ge=1, le=100)
    """Newest checkpoints that are kept. None means two, so that there is one before a damaged one."""
    checkpoint_keep_interval_steps: int = Field(default=0, ge=0, le=100_000)
    """Also write and keep, until the job is deleted, the checkpoint of every step that this divides. 0 means none."""

    @model_validator(mode="before")
    @classmethod
    def _learning_rate_of_prodigy(cls, fields: Any) -> Any:
        """Prodigy multiplies the learning rate it finds by this one, so any other default would hold it back."""
        if isinstance(fields, dict) and fields.get("optimizer") == Optimizer.PRODIGY:
            return {"learning_rate": 1.0, **fields}
        return fields
