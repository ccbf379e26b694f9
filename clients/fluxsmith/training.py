"""What a training job computes, where it stands, and what it made."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from fluxsmith.artifacts import Artifact
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


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Everything that decides what a job computes. None means the trainer's default, which is named with each field."""

    rank: int | None = None
    """Rank of the LoRA matrices. 1 to 512; default 16."""
    alpha: float | None = None
    """The adapter's output is scaled by alpha / rank. Over 0, at most 4096; default 16."""
    learning_rate: float | None = None
    """Peak learning rate. Over 0, at most 0.1; default 1e-4. With PRODIGY at most 10; default 1."""
    batch_size: int | None = None
    """Samples a step, drawn from one bucket. 1 to 64; default 1."""
    steps: int | None = None
    """Length of the run in optimizer steps. 1 to 100,000; excludes `epochs`."""
    epochs: int | None = None
    """Length of the run as times that every sample is seen. 1 to 10,000; default 1, unless `steps` is set."""
    seed: int | None = None
    """The same seed on the same data gives the same steps. 0 to 2^32 - 1; default 0."""
    sigma_sampling: SigmaSampling | None = None
    """How noise levels are drawn; default LOGIT_NORMAL."""
    targets: TargetPreset | None = None
    """Which layers are adapted; default IMAGE_STREAM."""
    warmup_steps: int | None = None
    """Steps of linear warm-up of the learning rate. 0 to 10,000; default 0."""
    max_gradient_norm: float | None = None
    """Largest norm of the gradient; larger ones are scaled down. Over 0; default 1."""
    caption_dropout: float | None = None
    """Share of samples trained with the empty caption. 0 to 1; default 0."""
    gradient_checkpointing: bool | None = None
    """Recompute activations in the backward pass: less memory, about a third more time. Default yes."""
    validation_interval_steps: int | None = None
    """Steps between measurements of the held-out loss. 1 to 100,000; default 10 measurements a run."""
    timesteps: int | None = None
    """Equally spaced noise levels that UNIFORM draws from; no draw is below 1 / timesteps. 10 to 100,000; default
    1,000."""
    sigma_mean: float | None = None
    """Mean of the normal distribution behind LOGIT_NORMAL and both shifts. -10 to 10; default 0."""
    sigma_std: float | None = None
    """Standard deviation of the normal distribution behind LOGIT_NORMAL and both shifts. Over 0, at most 10; default
    1."""
    sigma_shift: float | None = None
    """Shift of STATIC_SHIFT: over 1 towards noise. 0.01 to 100; default 3."""
    sigma_mode_scale: float | None = None
    """Scale of MODE: 0 is uniform. -1 to 1.75; default 1.29."""
    sigma_beta_a: float | None = None
    """First parameter of BETA, which pulls towards noise. 0.1 to 50; default 2."""
    sigma_beta_b: float | None = None
    """Second parameter of BETA, which pulls towards the image. 0.1 to 50; default 2."""
    sigma_min: float | None = None
    """Lowest noise level drawn; the distribution is cut off there. 0 to below `sigma_max`; default 0."""
    sigma_max: float | None = None
    """Highest noise level drawn; the distribution is cut off there. Above `sigma_min`, at most 1; default 1."""
    sigma_stratified: bool | None = None
    """Spread the levels of a step's samples over equal shares of the distribution, for less noise in the gradient.
    Default no."""
    loss_weighting: LossWeighting | None = None
    """How much each noise level counts in the loss. Default NONE."""
    loss_function: LossFunction | None = None
    """What is made of the error of the velocity. Default MSE."""
    huber_delta: float | None = None
    """Error at which HUBER turns from square to linear. Over 0, at most 1; default 0.1."""
    huber_schedule: HuberSchedule | None = None
    """How `huber_delta` changes with the noise level. Default CONSTANT."""
    masked_loss: bool | None = None
    """Count only what the cached masks of the dataset leave; without masks everything counts. Default yes."""
    unmasked_weight: float | None = None
    """Weight of what a mask leaves out. 0 to 1; default 0."""
    guidance: GuidanceMode | None = None
    """What the transformer's embedding of the guidance scale is told. Default BYPASS."""
    guidance_scale: float | None = None
    """Guidance scale of FIXED, and the lowest of SAMPLED. 0 to 100; default 1."""
    guidance_scale_max: float | None = None
    """Highest guidance scale of SAMPLED. At least `guidance_scale`, at most 100; default 3.5."""
    gradient_accumulation_steps: int | None = None
    """Batches whose gradients make one optimizer step. 1 to 1024; default 1."""
    ema_decay: float | None = None
    """Decay a step of the exponential moving average of the adapter, which is then what is measured, previewed and
    published. 0 means no average. 0 to below 1; default 0."""
    max_skipped_steps: int | None = None
    """A step whose loss or gradient is not finite is skipped; the job fails once more than this many in a row were.
    0 to 10,000; default 10."""
    optimizer: Optimizer | None = None
    """What turns gradients into changes of the weights. Default ADAMW."""
    weight_decay: float | None = None
    """Decoupled weight decay. 0 to 10; default 0.0001."""
    beta1: float | None = None
    """Decay of the optimizer's mean of gradients; not for ADAFACTOR. 0 to below 1; default the optimizer's own: 0.9."""
    beta2: float | None = None
    """Decay of the optimizer's mean of squared gradients; not for ADAFACTOR. 0 to below 1; default the optimizer's
    own: 0.999, with LION 0.99."""
    learning_rate_schedule: LearningRateSchedule | None = None
    """How the learning rate goes on after the warm-up. Default CONSTANT."""
    schedule_cycles: int | None = None
    """Times that COSINE_WITH_RESTARTS falls. 1 to 1000; default 2."""
    schedule_power: float | None = None
    """Power of POLYNOMIAL; 1 is LINEAR. Over 0, at most 10; default 1."""
    final_learning_rate_ratio: float | None = None
    """Learning rate at the end of a schedule that falls, as a share of `learning_rate`. 0 to 1; default 0."""
    lora_plus_ratio: float | None = None
    """LoRA+: learning rate of the B matrices as a multiple of `learning_rate`. 1 to 1000; default 1."""
    adapter_type: AdapterType | None = None
    """What is added to a layer. Default LORA."""
    use_rslora: bool | None = None
    """rsLoRA: scale by alpha / sqrt(rank) instead of alpha / rank. LORA and DORA only. Default no."""
    adapter_dropout: float | None = None
    """Share of a layer's inputs that the adapter does not see in a step. LORA and DORA only. 0 to below 1; default
    0."""
    target_regex: str | None = None
    r"""Regular expression that the full names of the modules to adapt match, such as
    `transformer_blocks\.\d+\.attn\.to_[qkv]`; takes the place of `targets`. Up to 1000 characters; by default
    `targets` decides."""
    rank_pattern: Mapping[str, int] | None = None
    """Ranks of single modules: a regular expression that full names match, and the rank of those; the first that
    matches counts, in alphabetical order. Up to 100 entries, ranks of 1 to 512; default `rank` everywhere."""
    lokr_factor: int | None = None
    """Side of LoKr's smaller matrix. 2 to 1024; default as square as the layer allows."""
    init_weights: InitWeights | None = None
    """What the adapter begins with. Default KAIMING."""
    warm_start_uri: str | None = None
    """Address of a LoRA file to begin with, as `lora_uri` of a result or from `client.upload_adapter`; its
    layers and rank must be those of the job. By default the adapter begins anew."""
    file_dtype: FileDtype | None = None
    """Precision of the numbers in the LoRA files. Default FP32."""
    kohya_file: bool | None = None
    """Also publish the adapter in the form that ComfyUI reads: a LORA as `lora.kohya.safetensors`, which is Forge's and
    InvokeAI's too, another type as `lora.comfyui.safetensors`. Default yes."""
    tag_frequency: bool | None = None
    """Also write into the files how many captions have each tag between their commas, which other programs list;
    captions may be private. Default no."""
    held_out_share: float | None = None
    """Share of the dataset's samples that is not trained on but measured on, in place of a held-out dataset; at
    least one sample. 0 to 0.5; default 0."""
    early_stopping_patience: int | None = None
    """End the run after this many measurements in a row that were not better; needs held-out data. 0 means never. 0
    to 10,000; default 0."""
    early_stopping_min_delta: float | None = None
    """A measurement is better when it is lower by more than this. 0 to 100; default 0."""
    preview_prompts: Sequence[str] | None = None
    """Prompts of the pictures that are made while training, before the first step, every `preview_interval_steps`
    and at the end. Each gets the dataset's trigger word as captions do: in place of `[trigger]`, or before it unless it
    has it. Up to 16 of up to 2000 characters; default no pictures."""
    preview_interval_steps: int | None = None
    """Steps between previews. 1 to 100,000; default 4 times a run."""
    preview_seed: int | None = None
    """Seed of every preview's noise. 0 to 2^32 - 1; default 0."""
    preview_sampling_steps: int | None = None
    """Steps in which a preview is sampled. 1 to 200; default 28."""
    preview_guidance_scale: float | None = None
    """Guidance scale of previews. 0 to 100; default 3.5."""
    preview_height_px: int | None = None
    """Height of previews. A multiple of 16, 32 to 2048; default that of most samples."""
    preview_width_px: int | None = None
    """Width of previews. A multiple of 16, 32 to 2048; default that of most samples."""
    checkpoint_interval_steps: int | None = None
    """Steps between checkpoints, of which the newest `checkpoints_kept` stay until the job is deleted. 1 to 100,000;
    default one every few minutes, as the trainer is set, and they are removed once the job has succeeded."""
    checkpoints_kept: int | None = None
    """Newest checkpoints that are kept: until the job is deleted if this is set, also those of every few minutes. 1 to
    100; default 2, so that there is one before a damaged one."""
    checkpoint_keep_interval_steps: int | None = None
    """Also write and keep, until the job is deleted, the checkpoint of every step that this divides. 0 means none. 0 to
    100,000; default 0."""


class JobState(StrEnum):
    """Where a job stands."""

    QUEUED = "QUEUED"
    RUNNING = "RUNNING"
    PAUSING = "PAUSING"
    PAUSED = "PAUSED"
    CANCELLING = "CANCELLING"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"
    UNKNOWN = "UNKNOWN"
    """A state that this version of the library does not know."""

    @property
    def ended(self) -> bool:
        """Whether a job in this state stays in it for good."""
        return self in {JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED}


class Fault(StrEnum):
    """Whose fault the failure of a job was."""

    USER = "USER"
    """The request's: repeating it would fail again."""
    SYSTEM = "SYSTEM"
    """The service's: it was tried again and kept failing."""
    RESOURCE = "RESOURCE"
    """It needs more memory than there is."""
    UNKNOWN = "UNKNOWN"
    """Not told, or told in a way that this version of the library does not know."""


@dataclass(frozen=True, kw_only=True)
class JobFailure:
    """Why a job failed."""

    fault: Fault = Fault.UNKNOWN
    reason: str = ""
    """Stable, for programs, such as `NON_FINITE_LOSS`."""
    message: str
    remedy: str = ""


@dataclass(frozen=True, kw_only=True)
class TrainingResult:
    """What a job made."""

    lora_uri: str
    """`s3://bucket/key` of a safetensors file with PEFT keys, as `FluxPipeline.load_lora_weights` reads it."""
    lora_bytes: int
    lora_digest: str
    """sha256 of the file as hexadecimal."""
    held_out_loss_base: float | None = None
    """Loss before the first step on the held-out data, at fixed noise: that of the base, or of the LoRA that the job
    began with; None without held-out data."""
    held_out_loss_lora: float | None = None
    """The same with the finished adapter."""
    step_time_s: float | None = None
    """Median time of a step."""
    artifacts: tuple[Artifact, ...] = ()
    """Every file of the job, the newest of each name: the LoRA in its forms, the best one, metrics, previews, the
    report, and the LoRA of each checkpoint that stays. Left out by `client.jobs()`; `job.artifacts()` has them."""
    best_step: int | None = None
    """The best step, after which the held-out loss was lowest; 0 is before the first. None without held-out data. The
    adapter of that step is `best_artifact_name`; `lora.safetensors` is always that of the last step."""
    held_out_loss_best: float | None = None
    """Held-out loss after that step."""
    held_out_loss_zero: float | None = None
    """The yardstick for the held-out losses: what it would be if the model predicted no velocity at all, so the mean
    square of noise - clean on the same images, noise and noise levels. None without held-out data."""
    best_artifact_name: str = ""
    """File with the adapter of `best_step`, for `job.download`: `lora.safetensors` where that is the last step, else
    `lora-best.safetensors`. Empty, which `job.download` takes for `lora.safetensors`, without held-out data."""
    stopped_early: bool = False
    """Whether the run ended before its length because the held-out loss no longer fell."""
    skipped_steps: int = 0
    """Steps skipped because their loss or gradient was not finite."""
    memory_peak_bytes: int = 0
    """Most memory used while the job ran: of the GPU, or of the worker's process where there is none; 0 if not told."""


@dataclass(frozen=True, kw_only=True)
class TrainingJob:
    """A training job as it was when asked for."""

    id: str
    user_id: str = ""
    """User of the product that asked for the job, as given."""
    name: str = ""
    """For people."""
    state: JobState
    config: TrainConfig
    """What it computes, with every default filled in."""
    dataset_id: str
    held_out_dataset_id: str = ""
    """Empty means none."""
    create_time: datetime | None = None
    start_time: datetime | None = None
    """When a worker first took it up."""
    end_time: datetime | None = None
    step: int = 0
    """Optimizer steps done."""
    total_steps: int = 0
    """Optimizer steps in all, known once it runs."""
    attempt: int = 0
    """Times a worker has taken it up; more than 1 after a worker was lost."""
    failure: JobFailure | None = None
    """Set only when FAILED."""
    result: TrainingResult | None = None
    """Set only when SUCCEEDED."""
    last_sequence: int = 0
    """Sequence of its newest event."""
    queue_position: int = 0
    """Jobs ahead of it; meaningful only while QUEUED, and not told by `client.jobs`."""
    start_while_encoding: bool = False
    """Whether it may begin before its dataset is encoded."""
    priority: int = 0
    """As given: of the tenant's waiting jobs, the highest goes first."""
    time_left_s: float | None = None
    """How long it still runs by its latest steps, turns of jobs beside it included; None unless it is RUNNING."""
    checkpoint_step: int = 0
    """Step of its newest checkpoint; 0 before the first."""
    progress_time: datetime | None = None
    """When its worker last got on with it; None while no worker has it."""
    first_sequence: int = 0
    """Sequence of its oldest event; over 1 once its events were removed, all but the last, some time after its end."""

    @property
    def held_out_line(self) -> str:
        """The held-out losses in a line, the best step before the last; empty if there are none.

        Such as `best step 140: 0.8300 (base 0.9200, predicting nothing 2.3100); last step 200: 0.8500`.
        """
        result = self.result
        if result is None or result.held_out_loss_lora is None:
            return ""
        last = f"last step {self.step}: {result.held_out_loss_lora:.4f}"
        best, loss = result.best_step, result.held_out_loss_best
        if best is None or loss is None:  # from a service that does not tell it
            return last + _against(self, base=True)
        if best == self.step:
            return f"best step {best}, the last: {loss:.4f}{_against(self, base=True)}"
        name = f"best step {best}" if best else "best before the first step"
        return f"{name}: {loss:.4f}{_against(self, base=best > 0)}; {last}"


def _against(job: TrainingJob, *, base: bool) -> str:
    """Return in parentheses what a loss is held against."""
    assert job.result  # noqa: S101 - for the type checker: `held_out_line` has seen to it
    start = "start" if job.config.warm_start_uri else "base"
    losses = {"predicting nothing": job.result.held_out_loss_zero}
    if base:
        losses = {start: job.result.held_out_loss_base, **losses}
    told = ", ".join(f"{name} {loss:.4f}" for name, loss in losses.items() if loss is not None)
    return f" ({told})" if told else ""
