"""Tokenizers over small vocabularies and the smallest networks, of which the pipelines of tests are made.

Tokenizers are the families' own classes; ``WORDS`` are one token each in all of them. Weights are the same to the bit
each time.
"""

import gzip
import inspect
import re
from collections.abc import Callable
from typing import Any

import torch
from diffusers import AutoencoderKL, SanaPipeline, UNet2DConditionModel
from diffusers.pipelines.flux2.system_messages import SYSTEM_MESSAGE
from open_clip.tokenizer import bytes_to_unicode
from tokenizers import Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from torch import nn
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    GemmaTokenizerFast,
    PixtralImageProcessor,
    PixtralProcessor,
    PreTrainedTokenizerFast,
    Qwen2TokenizerFast,
    T5Config,
    T5EncoderModel,
    T5TokenizerFast,
)

from vpt.towers.starter.clip_mini import MERGES

WORDS = [
    "a",
    "an",
    "the",
    "of",
    "on",
    "in",
    "with",
    "photo",
    "picture",
    "dog",
    "cat",
    "mug",
    "rain",
    "red",
    "blue",
]


# words of Qwen-Image's template
TEMPLATED = (
    "image by detailing color shape size texture quantity text spatial relationships objects and background"
)


ROLES = ["system", "user", "assistant", "Describe"]


CHAT = """{% for m in messages %}<|im_start|>{{ m.role }}
{{ m.content }}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% if enable_thinking is false %}<think>

</think>

{% endif %}{% endif %}"""


MISTRAL_CHAT = """{{ bos_token }}{% for m in messages %}{% set text = m.content[0].text %}{% if m.role == 'system' %}\
[SYSTEM_PROMPT]{{ text }}[/SYSTEM_PROMPT]{% else %}[INST]{{ text }}[/INST]{% endif %}{% endfor %}"""


Build = Callable[[], Any]


def clip_tokenizer() -> CLIPTokenizer:
    """CLIP's byte pairs cut to 8,000 entries, those of clip-mini; 77 positions."""
    merges = [
        tuple(line.split())
        for line in gzip.decompress(MERGES.read_bytes()).decode().split("\n")[1:]
        if line.strip()
    ]
    signs = list(bytes_to_unicode().values())
    entries = [*signs, *(s + "</w>" for s in signs), *("".join(m) for m in merges)]
    entries += ["<|startoftext|>", "<|endoftext|>"]
    vocab = {entry: i for i, entry in enumerate(entries)}
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=77)


def t5_tokenizer() -> T5TokenizerFast:
    """Pieces: the words, and every sign on its own."""
    signs = [chr(c) for c in range(33, 127)]
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", -20.0), ("▁", -8.0)]
    pieces += [(f"▁{word}", -2.0) for word in WORDS] + [(sign, -9.0) for sign in signs]
    return T5TokenizerFast(vocab=pieces, extra_ids=0, model_max_length=512)


# what Sana and FLUX.2 put in front of every prompt: in single signs it would be most of the work
SANA = " ".join(inspect.signature(SanaPipeline.__call__).parameters["complex_human_instruction"].default)


def _words(text: str) -> list[str]:
    return re.findall(r"[A-Za-z]+", text)


def _merges(words: list[str]) -> list[tuple[str, str]]:
    """Byte pairs that make each word from its first sign on, so that no word's merges stand in another's way."""
    return list(dict.fromkeys((w[:i], w[i]) for w in words for i in range(1, len(w))))


def qwen_tokenizer() -> Qwen2TokenizerFast:
    """Byte pairs on bytes, with Qwen3's chat template. Qwen-Image's takes the 34 tokens that it counts on."""
    merges = _merges([*(f"Ġ{w}" for w in [*WORDS, *TEMPLATED.split()]), *ROLES])
    entries = [*bytes_to_unicode().values(), *("".join(m) for m in merges)]
    tokenizer = Qwen2TokenizerFast(
        vocab={entry: i for i, entry in enumerate(entries)}, merges=merges, model_max_length=2048
    )
    tokenizer.add_tokens(["<|im_start|>", "<|im_end|>"], special_tokens=True)
    tokenizer.add_tokens(["<think>", "</think>"])
    tokenizer.chat_template = CHAT
    return tokenizer


def gemma_tokenizer() -> GemmaTokenizerFast:
    """Byte pairs on signs, blanks written as ▁, a start token in front."""
    merges = _merges([f"▁{w}" for w in [*WORDS, *_words(SANA)]])
    signs = ["▁", "\n", *map(chr, range(33, 127))]
    entries = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", *signs, *("".join(m) for m in merges)]
    return GemmaTokenizerFast(
        vocab={entry: i for i, entry in enumerate(entries)},
        merges=merges,
        model_max_length=2048,
        add_bos_token=True,
    )


def mistral_processor() -> PixtralProcessor:
    """A processor around byte pairs on bytes: FLUX.2 hands its sentences to one."""
    merges = _merges([f"Ġ{w}" for w in [*WORDS, *_words(SYSTEM_MESSAGE)]])
    entries = ["<unk>", "<s>", "</s>", "<pad>", *bytes_to_unicode().values(), *("".join(m) for m in merges)]
    inner = Tokenizer(BPE({entry: i for i, entry in enumerate(entries)}, merges))
    inner.pre_tokenizer = ByteLevel(add_prefix_space=False)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        padding_side="left",
    )
    marks = ["[IMG]", "[IMG_BREAK]", "[IMG_END]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", "[INST]", "[/INST]"]
    tokenizer.add_tokens(marks, special_tokens=True)
    return PixtralProcessor(PixtralImageProcessor(), tokenizer, chat_template=MISTRAL_CHAT)


def seeded(make: Build) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return make().eval().requires_grad_(False)


def clip(width: int = 32, layers: int = 3, projected: bool = False, act: str = "quick_gelu") -> nn.Module:
    """A CLIP text model on ``clip_tokenizer``; projected: the class with the projection, to the same width."""
    config = CLIPTextConfig(
        vocab_size=8000,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=layers,
        num_attention_heads=4,
        projection_dim=width,
        hidden_act=act,
        bos_token_id=7998,
        eos_token_id=7999,
        pad_token_id=7999,
    )
    return seeded(lambda: (CLIPTextModelWithProjection if projected else CLIPTextModel)(config))


def t5(width: int = 32) -> nn.Module:
    """A T5 encoder of two blocks on ``t5_tokenizer``."""
    config = T5Config(
        vocab_size=128,
        d_model=width,
        d_kv=8,
        d_ff=2 * width,
        num_layers=2,
        num_heads=4,
        feed_forward_proj="gated-gelu",
    )
    return seeded(lambda: T5EncoderModel(config))


def vae(channels: int = 4, **config: Any) -> nn.Module:
    """An image autoencoder that halves each side: pictures of 16 px, latents [channels, 8, 8]."""
    return seeded(
        lambda: AutoencoderKL(
            block_out_channels=(8, 8),
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            norm_num_groups=4,
            latent_channels=channels,
            sample_size=16,
            **config,
        )
    )


def unet(**config: Any) -> nn.Module:
    """A U-Net on latents [4, 8, 8] with cross-attention in the lower of two levels."""
    given = {
        "sample_size": 8,
        "layers_per_block": 1,
        "block_out_channels": (16, 32),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "cross_attention_dim": 32,
        "norm_num_groups": 8,
        "attention_head_dim": 8,
    } | config
    return seeded(lambda: UNet2DConditionModel(**given))


def decoder(layers: int, **config: Any) -> dict[str, Any]:
    """What configs of language models have in common: 32 wide, so many blocks."""
    return {
        "vocab_size": 2048,
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_hidden_layers": layers,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 16,
        "bos_token_id": 0,
        "eos_token_id": 1,
    } | config


def ready(pipe: Any) -> Any:
    pipe.set_progress_bar_config(disable=True)
    return pipe


PICTURE = {"height": 16, "width": 16}
