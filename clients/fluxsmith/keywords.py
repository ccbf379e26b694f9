"""The fields of `TrainConfig` and `EncodingOptions` as keywords of methods, so that editors and checkers know them."""

from collections.abc import Mapping, Sequence
from typing import TypedDict

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
from fluxsmith.encoding import AlphaPolicy, LatentForm


class EncodingKeywords(TypedDict, total=False):
    """The fields of `EncodingOptions`, which says what each means; any may be left out."""

    resolution_px: int | None
    resolutions_px: tuple[int, ...]
    flip: bool | None
    bucket_step_px: int | None
    upscale: bool | None
    random_crops: int | None
    crop_seed: int | None
    latent_form: LatentForm | None
    alpha_policy: AlphaPolicy | None
    background_color: str
    trigger_word: str
    skip_bad_samples: bool | None
    max_bad_share: float | None


class TrainKeywords(TypedDict, total=False):
    """The fields of `TrainConfig`, which says what each means; any may be left out."""

    rank: int | None
    alpha: float | None
    learning_rate: float | None
    batch_size: int | None
    steps: int | None
    epochs: int | None
    seed: int | None
    sigma_sampling: SigmaSampling | None
    targets: TargetPreset | None
    warmup_steps: int | None
    max_gradient_norm: float | None
    caption_dropout: float | None
    gradient_checkpointing: bool | None
    validation_interval_steps: int | None
    timesteps: int | None
    sigma_mean: float | None
    sigma_std: float | None
    sigma_shift: float | None
    sigma_mode_scale: float | None
    sigma_beta_a: float | None
    sigma_beta_b: float | None
    sigma_min: float | None
    sigma_max: float | None
    sigma_stratified: bool | None
    loss_weighting: LossWeighting | None
    loss_function: LossFunction | None
    huber_delta: float | None
    huber_schedule: HuberSchedule | None
    masked_loss: bool | None
    unmasked_weight: float | None
    guidance: GuidanceMode | None
    guidance_scale: float | None
    guidance_scale_max: float | None
    gradient_accumulation_steps: int | None
    ema_decay: float | None
    max_skipped_steps: int | None
    optimizer: Optimizer | None
    weight_decay: float | None
    beta1: float | None
    beta2: float | None
    learning_rate_schedule: LearningRateSchedule | None
    schedule_cycles: int | None
    schedule_power: float | None
    final_learning_rate_ratio: float | None
    lora_plus_ratio: float | None
    adapter_type: AdapterType | None
    use_rslora: bool | None
    adapter_dropout: float | None
    target_regex: str | None
    rank_pattern: Mapping[str, int] | None
    lokr_factor: int | None
    init_weights: InitWeights | None
    warm_start_uri: str | None
    file_dtype: FileDtype | None
    kohya_file: bool | None
    tag_frequency: bool | None
    held_out_share: float | None
    early_stopping_patience: int | None
    early_stopping_min_delta: float | None
    preview_prompts: Sequence[str] | None
    preview_interval_steps: int | None
    preview_seed: int | None
    preview_sampling_steps: int | None
    preview_guidance_scale: float | None
    preview_height_px: int | None
    preview_width_px: int | None
    checkpoint_interval_steps: int | None
    checkpoints_kept: int | None
    checkpoint_keep_interval_steps: int | None
