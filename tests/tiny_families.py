"""Tiny random models of every family with tokenizers of its kind, saved as published students are."""

from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import (
    ByteLevelBPETokenizer,
    Tokenizer,
    decoders,
    models,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import PreTrainedTokenizerFast

from cfdistill.data import weasel

TEXTS = [
    t for scene in weasel.load_scenes("commonsense") for t in (*scene.frames, *scene.options, *scene.why)
]
FAMILIES = ("llama", "gpt2", "opt", "opt-350m", "gpt_neo", "bart", "t5")
DECODERS = FAMILIES[:5]


def tokenizer_of(family: str) -> Any:
    """Return a tokenizer: byte-level BPE, with OPT's and BART's special tokens around a text; T5 unigram."""
    if family == "t5":
        unigram = Tokenizer(models.Unigram())
        unigram.pre_tokenizer = pre_tokenizers.Metaspace()
        unigram.decoder = decoders.Metaspace()
        special = ["<pad>", "</s>", "<unk>"]
        trainer = trainers.UnigramTrainer(vocab_size=500, special_tokens=special, unk_token="<unk>")
        unigram.train_from_iterator(TEXTS, trainer)
        tokens, around, names = (
            unigram,
            "$A </s>",
            {"eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"},
        )
    else:
        ends = ["<|endoftext|>"] if family in ("llama", "gpt2", "gpt_neo") else ["<s>", "<pad>", "</s>"]
        bpe = ByteLevelBPETokenizer()
        bpe.train_from_iterator(TEXTS, vocab_size=500, special_tokens=ends, show_progress=False)
        tokens = bpe._tokenizer
        around = {"bart": "<s> $A </s>"}.get(family, "</s> $A" if family.startswith("opt") else "$A")
        names = {"eos_token": ends[-1], "pad_token": "<pad>" if "<pad>" in ends else ends[-1]}
    known = [(name, tokens.token_to_id(name)) for name in ("<s>", "</s>") if name in around]
    if known:
        tokens.post_processor = processors.TemplateProcessing(single=around, special_tokens=known)
    return PreTrainedTokenizerFast(tokenizer_object=tokens, **names)


def model_of(family: str, tokenizer: Any) -> Any:
    """Return a random model with weights large enough for every token and position to matter."""
    size = {
        "vocab_size": len(tokenizer),
        "pad_token_id": tokenizer.pad_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }
    size["bos_token_id"] = tokenizer.eos_token_id
    window = {"max_position_embeddings": 512}
    small = {"hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 3} | window
    bart = {
        "encoder_layers": 2,
        "decoder_layers": 2,
        "encoder_attention_heads": 4,
        "decoder_attention_heads": 4,
    }
    bart |= {"encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "d_model": 32, "forced_eos_token_id": None}
    post_norm = {"word_embed_proj_dim": 16, "do_layer_norm_before": False}
    made = {
        "llama": ("Llama", small | {"intermediate_size": 64}, {}),
        "gpt2": ("GPT2", {"n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 512}, {}),
        "opt": ("OPT", small | {"ffn_dim": 64, "word_embed_proj_dim": 32}, {}),
        "opt-350m": ("OPT", small | {"ffn_dim": 64} | post_norm, {}),
        "gpt_neo": (
            "GPTNeo",
            window | {"hidden_size": 32, "num_heads": 4, "num_layers": 4, "window_size": 8},
            {},
        ),
        "bart": ("Bart", bart | window, {"decoder_start_token_id": tokenizer.eos_token_id}),
        "t5": ("T5", {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4}, {}),
    }
    prefix, own, start = made[family]
    if family == "gpt_neo":
        own["attention_types"] = [[["global", "local"], 2]]
    if family == "t5":
        start = {"decoder_start_token_id": tokenizer.pad_token_id}
    config = getattr(transformers, f"{prefix}Config")(**size, **own, **start)
    kind = "Seq2SeqLM" if family in ("bart", "t5") else "CausalLM"
    torch.manual_seed(1)
    model = getattr(transformers, f"AutoModelFor{kind}").from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1 and family != "t5":
                parameter.mul_(8)
    return model.eval()


def save(family: str, folder: Path) -> Path:
    """Save model and tokenizer as a published student would be, and return the folder."""
    tokenizer = tokenizer_of(family)
    model_of(family, tokenizer).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
