"""Make the student `tiny-random` in cfdistill/student: a Llama of 100,000 random parameters, for tests."""

from pathlib import Path
from typing import Any

import torch
from tokenizers import ByteLevelBPETokenizer
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from cfdistill.data import weasel
from cfdistill.student import models

SIZE = 1024  # of the vocabulary


def main() -> None:
    """Train the tokenizer on the scene bank, draw the weights, and save both."""
    scenes = [scene for format in weasel.FORMATS for scene in weasel.load_scenes(format)]
    texts = [text for scene in scenes for text in (*scene.frames, *scene.options, *scene.why)]
    bpe = ByteLevelBPETokenizer()  # on bytes, so that any text can be written
    bpe.train_from_iterator(texts, vocab_size=SIZE, special_tokens=["<end>"], show_progress=False)
    fast: Any = PreTrainedTokenizerFast
    tokenizer = fast(tokenizer_object=bpe._tokenizer, eos_token="<end>", pad_token="<end>")
    config = LlamaConfig(
        vocab_size=SIZE,
        hidden_size=48,
        intermediate_size=96,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=4096,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.eos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=None,
    )
    torch.manual_seed(0)
    models.Student(LlamaForCausalLM(config), tokenizer).save(Path(models.__file__).with_name("tiny-random"))


if __name__ == "__main__":
    main()
