"""flux-tiny's text side: two tokenizers learnt from the captions, a small CLIP text model and a small T5 encoder.

Legend: none; no tensors here.
"""

from __future__ import annotations

import io
import json
import math
from collections import Counter
from dataclasses import dataclass

import sentencepiece
from sentencepiece import sentencepiece_model_pb2
from tokenizers import Tokenizer, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer, T5Config, T5EncoderModel, T5TokenizerFast

CLIP_TOKENS = 77
T5_TOKENS = 32  # where the pictures are best; up to 512 work for those who ask the tokenizer for them
CLIP_MERGES = 1500
T5_PIECES = 1700
WORD_COUNT = 2  # a word of the captions that occurs as often is one piece for T5


@dataclass(frozen=True, kw_only=True)
class Tokenizers:
    """FLUX's pair: `clip` for the pooled state, `t5` for the states of every token."""

    clip: CLIPTokenizer
    t5: T5TokenizerFast


def learn_tokenizers(captions: list[str]) -> Tokenizers:
    """Learn both vocabularies. Every letter and byte is in them, so captions of any words can be written."""
    return Tokenizers(clip=learn_clip_tokenizer(captions), t5=learn_t5_tokenizer(captions))


def learn_clip_tokenizer(captions: list[str]) -> CLIPTokenizer:
    """CLIP's byte-level BPE: all bytes, all bytes at a word's end, then the merges, then the two marks at the top."""
    blank = CLIPTokenizer()
    learner = Tokenizer(BPE(end_of_word_suffix="</w>"))
    learner.normalizer = blank.backend_tokenizer.normalizer
    learner.pre_tokenizer = blank.backend_tokenizer.pre_tokenizer
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    pieces = [*alphabet, *(f"{byte}</w>" for byte in alphabet)]
    trainer = BpeTrainer(
        vocab_size=len(pieces) + CLIP_MERGES,
        initial_alphabet=alphabet,
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    learner.train_from_iterator(captions, trainer)
    merges = read_merges(learner)
    pieces += ["".join(merge) for merge in merges]
    vocab = {piece: index for index, piece in enumerate(dict.fromkeys(pieces))}
    vocab |= {"<|startoftext|>": len(vocab), "<|endoftext|>": len(vocab) + 1}
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=CLIP_TOKENS)


def read_merges(learner: Tokenizer) -> list[tuple[str, str]]:
    """The merges in order of rank. Only the serialised form of a tokenizer shows them."""
    return [(left, right) for left, right in json.loads(learner.to_str())["model"]["merges"]]


def learn_t5_tokenizer(captions: list[str]) -> T5TokenizerFast:
    """T5's sentencepiece unigram model. Case is folded, as CLIP's tokenizer does."""
    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(captions),
        model_writer=written,
        vocab_size=T5_PIECES,
        hard_vocab_limit=False,
        model_type="unigram",
        normalization_rule_name="nmt_nfkc_cf",
        character_coverage=1.0,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        num_threads=1,
        minloglevel=2,
    )
    model = sentencepiece_model_pb2.ModelProto.FromString(written.getvalue())
    pieces = {piece.piece: piece.score for piece in model.pieces}
    return T5TokenizerFast(
        vocab=[*(pieces | whole_words(captions)).items()],
        _spm_precompiled_charsmap=model.normalizer_spec.precompiled_charsmap,
        model_max_length=T5_TOKENS,
    )


def whole_words(captions: list[str]) -> dict[str, float]:
    """Frequent words as pieces of their own, with the logarithm of their share as score.

    sentencepiece takes its candidates from the list of *different* words, where most words occur once, so it would cut
    even common ones in two.
    """
    counts = Counter(word for caption in captions for word in caption.replace(",", " ").split())
    total = counts.total()
    return {f"▁{word}": math.log(count / total) for word, count in counts.items() if count >= WORD_COUNT}


def new_clip(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """Two layers of width 64. The marks' ids must be right: the pooled state is read at the first end mark."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=64,
            intermediate_size=256,
            projection_dim=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=CLIP_TOKENS,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def new_t5(tokenizer: T5TokenizerFast) -> T5EncoderModel:
    """Three layers of width 128 in the 1.1 form that FLUX uses (gated GELU, no dropout while so small)."""
    return T5EncoderModel(
        T5Config(
            vocab_size=len(tokenizer),
            d_model=128,
            d_kv=32,
            d_ff=384,
            num_layers=3,
            num_heads=4,
            dropout_rate=0.0,
            feed_forward_proj="gated-gelu",
            tie_word_embeddings=False,
            is_encoder_decoder=False,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
    )
