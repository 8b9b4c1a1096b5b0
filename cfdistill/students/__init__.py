"""Students: small language models by name, from a local folder, or bundled without any model hub."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cfdistill import runs
from cfdistill.errors import StageError, TrainingError
from cfdistill.families import HUB, family_of
from cfdistill.params import STUDENTS, Params
from cfdistill.schema import DIRECT, ELIMINATION

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
        # The tokenizer's file takes some 60 bytes a token, and the libraries' own errors are no OSError.
        check_space(folder, weight_bytes(self.model.parameters()) + 128 * len(self.tokenizer) + 2**16)
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
        name: one of `params.STUDENTS`, or the path of a folder with a model and its tokenizer.
        params: `run_root` holds converted weights; `strategy_tokens`.

    Raises:
        TrainingError: the student is unknown, cannot be had, or was changed.
    """
    from cfdistill.students import bundled

    if name == "smollm2-135m":
        student = bundled.smollm2(params)
    elif name == "tiny-random":
        student = bundled.tiny_random()
    elif name in HUB:
        student = Student(name, *_pretrained(HUB[name]))
    elif "/" in name:
        student = load_folder(Path(name).name, runs.resolve(name))
    else:
        raise TrainingError(f"unknown student {name!r}; known are {', '.join(STUDENTS)}, or a folder's path")
    if params.strategy_tokens == "special":
        add_strategy_tokens(student)
    return student


def load_folder(name: str, folder: Path) -> Student:
    """Return the student saved in `folder`, on the GPU if there is one.

    Raises:
        TrainingError: it holds no student, or weights in pickle files, which can run code and are not read.
    """
    if not (folder / "config.json").is_file() or not any(folder.glob("*.safetensors")):
        raise TrainingError(
            f"{folder} needs config.json, tokenizer files and weights as *.safetensors; save a student "
            "there with save_pretrained (weights in pickle files are not read)"
        )
    return Student(name, *_pretrained(str(folder), local_files_only=True))


def _pretrained(source: str, **options: Any) -> tuple[Any, Any]:
    """Return model and tokenizer from a folder or the hub: safetensors only, no code from there."""
    import torch
    from transformers import (
        AutoConfig,
        AutoModelForCausalLM,
        AutoModelForSeq2SeqLM,
        AutoTokenizer,
        GenerationConfig,
    )

    try:
        config = AutoConfig.from_pretrained(source, **options)
        loader: Any = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
        with quiet_weights():
            # Every student trains and answers in fp32 or bf16 autocast; T5 overflows in fp16.
            model = loader.from_pretrained(source, dtype=torch.float32, use_safetensors=True, **options)
        tokenizer: Any = AutoTokenizer.from_pretrained(source, **options)
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise TrainingError(f"the student cannot be had from {source}: {reason[:300]}") from error
    family_of(model)
    if config.is_encoder_decoder:  # BART's own asks for beams, and bans what it said before
        plain: Any = GenerationConfig
        model.generation_config = plain(decoder_start_token_id=config.decoder_start_token_id)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return model.eval().to(device), tokenizer


def add_strategy_tokens(student: Student) -> None:
    """Make each strategy token one token of the vocabulary instead of text (`strategy_tokens: special`).

    Its embedding begins as the mean of those of its text, so that nothing is random (our choice).
    """
    import torch

    model, tokenizer = student.model, student.tokenizer
    spelled = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in (DIRECT, ELIMINATION)]
    tokenizer.add_tokens([DIRECT, ELIMINATION], special_tokens=True)
    if len(tokenizer) > model.get_input_embeddings().num_embeddings:
        model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    tables = {id(t): t for t in (model.get_input_embeddings().weight, model.get_output_embeddings().weight)}
    with torch.no_grad():
        for text, ids in zip((DIRECT, ELIMINATION), spelled, strict=True):
            for table in tables.values():  # one where input and output share it
                table[tokenizer.convert_tokens_to_ids(text)] = table[ids].mean(0)


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
