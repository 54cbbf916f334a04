"""Published transformers by name: the configurations of their authors, as data.

Each number is that of the `config.json` published with the weights under the name in `source`, on the
hub that `transformers` reads. What a line leaves out is the default of the configuration class, and
was checked to be the published value. No weights are here, and none are needed.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal

__all__ = ["PUBLISHED", "Family", "Published"]

Task = Literal["next token", "masked token", "translation", "image"]


@dataclass(frozen=True, slots=True)
class Family:
    """Models that differ only in size."""

    config: str
    """Class of `transformers` that describes one."""
    model: str
    """Class of `transformers` that is trained."""
    depth: str
    """The configuration's field for the number of layers."""
    task: Task = "next token"
    longest: int | None = None
    """Tokens that its table of positions has room for; `None` if it has no table."""
    usual: int = 1024
    """Tokens of a sequence, if nobody says how many."""
    fixed: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Published:
    family: Family
    source: str
    values: Mapping[str, Any]


_GPT2 = Family("GPT2Config", "GPT2LMHeadModel", "n_layer", longest=1024)
_OPT = Family("OPTConfig", "OPTForCausalLM", "num_hidden_layers", longest=2048)
_LLAMA = Family(
    "LlamaConfig",
    "LlamaForCausalLM",
    "num_hidden_layers",
    fixed={"rms_norm_eps": 1e-5},
)
_MISTRAL = Family("MistralConfig", "MistralForCausalLM", "num_hidden_layers")
_QWEN2 = Family("Qwen2Config", "Qwen2ForCausalLM", "num_hidden_layers")
_BERT = Family(
    "BertConfig", "BertForMaskedLM", "num_hidden_layers", "masked token", longest=512, usual=512
)
_ROBERTA = Family(
    "RobertaConfig",
    "RobertaForMaskedLM",
    "num_hidden_layers",
    "masked token",
    longest=512,  # of the 514 rows of its table, two are never met
    usual=512,
    fixed={"max_position_embeddings": 514, "type_vocab_size": 1, "layer_norm_eps": 1e-5},
)
_T5 = Family("T5Config", "T5ForConditionalGeneration", "num_layers", "translation", usual=512)
_VIT = Family("ViTConfig", "ViTForImageClassification", "num_hidden_layers", "image")


def _gpt2(source: str, width: int, layers: int, heads: int) -> Published:
    return Published(_GPT2, source, {"n_embd": width, "n_layer": layers, "n_head": heads})


def _decoder(
    family: Family,
    source: str,
    width: int,
    inner: int,
    layers: int,
    heads: tuple[int, int],
    tokens: int,
    **others: Any,
) -> Published:
    """Llama and what is built like it; `heads`: of queries, of keys and values."""
    sizes = {
        "hidden_size": width,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads[0],
        "num_key_value_heads": heads[1],
        "vocab_size": tokens,
        "tie_word_embeddings": False,
    }
    return Published(family, source, sizes | others)


def _opt(source: str, width: int, layers: int, heads: int) -> Published:
    sizes = {
        "hidden_size": width,
        "word_embed_proj_dim": width,
        "ffn_dim": 4 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
    }
    return Published(_OPT, source, sizes)


def _encoder(
    family: Family, source: str, width: int, layers: int, heads: int, **others: Any
) -> Published:
    """BERT and what is built like it."""
    sizes = {
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
    }
    return Published(family, source, sizes | others)


def _t5(source: str, width: int, layers: int, heads: int) -> Published:
    sizes = {"d_model": width, "d_ff": 4 * width, "num_layers": layers, "num_heads": heads}
    return Published(_T5, source, sizes)


PUBLISHED: Mapping[str, Published] = MappingProxyType(
    {
        "gpt2": _gpt2("openai-community/gpt2", 768, 12, 12),
        "gpt2-medium": _gpt2("openai-community/gpt2-medium", 1024, 24, 16),
        "gpt2-large": _gpt2("openai-community/gpt2-large", 1280, 36, 20),
        "gpt2-xl": _gpt2("openai-community/gpt2-xl", 1600, 48, 25),
        "llama-2-7b": _decoder(
            _LLAMA, "meta-llama/Llama-2-7b-hf", 4096, 11008, 32, (32, 32), 32_000
        ),
        "llama-2-13b": _decoder(
            _LLAMA, "meta-llama/Llama-2-13b-hf", 5120, 13824, 40, (40, 40), 32_000
        ),
        "llama-3-8b": _decoder(
            _LLAMA, "meta-llama/Meta-Llama-3-8B", 4096, 14336, 32, (32, 8), 128_256
        ),
        "llama-3-70b": _decoder(
            _LLAMA, "meta-llama/Meta-Llama-3-70B", 8192, 28672, 80, (64, 8), 128_256
        ),
        "llama-3.2-1b": _decoder(
            _LLAMA,
            "meta-llama/Llama-3.2-1B",
            2048,
            8192,
            16,
            (32, 8),
            128_256,
            tie_word_embeddings=True,
        ),
        "llama-3.2-3b": _decoder(
            _LLAMA,
            "meta-llama/Llama-3.2-3B",
            3072,
            8192,
            28,
            (24, 8),
            128_256,
            tie_word_embeddings=True,
        ),
        "mistral-7b": _decoder(
            _MISTRAL,
            "mistralai/Mistral-7B-v0.1",
            4096,
            14336,
            32,
            (32, 8),
            32_000,
            rms_norm_eps=1e-5,
            sliding_window=4096,
        ),
        "qwen2.5-0.5b": _decoder(
            _QWEN2, "Qwen/Qwen2.5-0.5B", 896, 4864, 24, (14, 2), 151_936, tie_word_embeddings=True
        ),
        "qwen2.5-7b": _decoder(_QWEN2, "Qwen/Qwen2.5-7B", 3584, 18944, 28, (28, 4), 152_064),
        "opt-1.3b": _opt("facebook/opt-1.3b", 2048, 24, 32),
        "opt-6.7b": _opt("facebook/opt-6.7b", 4096, 32, 32),
        "opt-13b": _opt("facebook/opt-13b", 5120, 40, 40),
        "bert-base": _encoder(_BERT, "google-bert/bert-base-uncased", 768, 12, 12),
        "bert-large": _encoder(_BERT, "google-bert/bert-large-uncased", 1024, 24, 16),
        "roberta-base": _encoder(
            _ROBERTA, "FacebookAI/roberta-base", 768, 12, 12, vocab_size=50_265
        ),
        "t5-small": _t5("google-t5/t5-small", 512, 6, 8),
        "t5-base": _t5("google-t5/t5-base", 768, 12, 12),
        "t5-large": _t5("google-t5/t5-large", 1024, 24, 16),
        "vit-base": _encoder(
            _VIT, "google/vit-base-patch16-224", 768, 12, 12, patch_size=16, num_labels=1000
        ),
        "vit-large": _encoder(
            _VIT, "google/vit-large-patch16-224", 1024, 24, 16, patch_size=16, num_labels=1000
        ),
    }
)
