"""Tiny random models of every family with tokenizers of its kind, saved as published students are."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tokenizers
import torch
import transformers
from tokenizers import decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from cfdistill.data import weasel

SCENES = weasel.load_scenes("commonsense")
TEXTS = [text for scene in SCENES for text in (*scene.frames, *scene.options, *scene.why)]
FAMILIES = ("llama", "gpt2", "opt", "opt-350m", "gpt_neo", "bart", "t5")


def tokenizer_of(family: str, texts: Sequence[str] = TEXTS, size: int = 500) -> Any:
    """Return a tokenizer: byte-level BPE, with OPT's and BART's special tokens around a text; T5 unigram."""
    if family == "t5":
        tokens, special = tokenizers.Tokenizer(models.Unigram()), ["<pad>", "</s>", "<unk>"]
        tokens.pre_tokenizer, tokens.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
        trainer = trainers.UnigramTrainer(vocab_size=size, special_tokens=special, unk_token="<unk>")
        tokens.train_from_iterator(texts, trainer)
        around, names = "$A </s>", {"eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    else:
        ends = ["<|endoftext|>"] if family in ("llama", "gpt2", "gpt_neo") else ["<s>", "<pad>", "</s>"]
        bpe = tokenizers.ByteLevelBPETokenizer()
        bpe.train_from_iterator(texts, vocab_size=size, special_tokens=ends, show_progress=False)
        tokens = bpe._tokenizer
        around = {"bart": "<s> $A </s>"}.get(family, "</s> $A" if family.startswith("opt") else "$A")
        names = {"eos_token": ends[-1], "pad_token": "<pad>" if "<pad>" in ends else ends[-1]}
    if known := [(name, tokens.token_to_id(name)) for name in ("<s>", "</s>") if name in around]:
        tokens.post_processor = processors.TemplateProcessing(single=around, special_tokens=known)
    return PreTrainedTokenizerFast(tokenizer_object=tokens, **names)


def config_of(family: str, tokenizer: Any) -> Any:
    end, pad = tokenizer.eos_token_id, tokenizer.pad_token_id
    size = {"vocab_size": len(tokenizer), "pad_token_id": pad, "eos_token_id": end, "bos_token_id": end}
    window = {"max_position_embeddings": 512}
    small = {"hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 3} | window
    sides = {"layers": 2, "attention_heads": 4, "ffn_dim": 64}
    bart = {f"{side}_{name}": n for side in ("encoder", "decoder") for name, n in sides.items()}
    bart |= {"d_model": 32, "forced_eos_token_id": None, "decoder_start_token_id": end} | window
    opt = small | {"ffn_dim": 64, "word_embed_proj_dim": 32}
    neo = {"num_layers": 4, "window_size": 8, "attention_types": [[["global", "local"], 2]]}
    t5 = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4}
    name, own = {
        "llama": ("Llama", small | {"intermediate_size": 64}),
        "gpt2": ("GPT2", {"n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 512}),
        "opt": ("OPT", opt),
        "opt-350m": ("OPT", opt | {"word_embed_proj_dim": 16, "do_layer_norm_before": False}),
        "gpt_neo": ("GPTNeo", window | {"hidden_size": 32, "num_heads": 4} | neo),
        "bart": ("Bart", bart),
        "t5": ("T5", t5 | {"decoder_start_token_id": pad}),
    }[family]
    return getattr(transformers, f"{name}Config")(**size, **own)


def save(family: str, folder: Path) -> Path:
    """Save a model, random with weights large enough for every token and position to matter."""
    tokenizer, kind = tokenizer_of(family), "Seq2SeqLM" if family in ("bart", "t5") else "CausalLM"
    torch.manual_seed(1)
    model = getattr(transformers, f"AutoModelFor{kind}").from_config(config_of(family, tokenizer))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1 and family != "t5":
                parameter.mul_(8)
    model.eval().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
