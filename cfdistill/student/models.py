"""Students: small language models by name, from a local folder, or bundled without any model hub."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cfdistill.errors import TrainingError
from cfdistill.files import check_space, cores, resolve, sha256
from cfdistill.params import STUDENTS, Params, read_yaml
from cfdistill.student import bundled

GPU_DRIVERS = (Path("/dev/nvidia0"), Path("/proc/driver/nvidia"), Path("/dev/kfd"))
CPU_FACTS = Path("/proc/cpuinfo")
READ_FILES = ("*.json", "*.safetensors", "tokenizer*", "vocab.*", "merges.txt", "*.model")  # of a folder


@dataclass(frozen=True)
class Family:
    """What sets a family of models apart; `families.yaml` explains the fields."""

    packs: bool = False
    layers: str = ""
    after: Sequence[str] = ()


FAMILIES = {kind: Family(**row) for kind, row in read_yaml(Path(__file__).with_name("families.yaml")).items()}


@dataclass(frozen=True)
class Student:
    """A language model with its tokenizer, in evaluation mode."""

    model: Any  # a transformers.PreTrainedModel, whose own type hints are incomplete
    tokenizer: Any  # a transformers.PreTrainedTokenizerBase

    def save(self, folder: Path) -> None:
        """Write weights (safetensors), configuration and tokenizer; raises StageError if there is no room."""
        # the tokenizer's file takes some 60 bytes a token, and the libraries' own errors are no OSError
        check_space(folder, 4 * self.model.num_parameters() + 128 * len(self.tokenizer) + 2**16)
        self.model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)


def load(params: Params) -> Student:
    """Return the untrained student; raises TrainingError when it cannot be had or was changed."""
    if params.student == "smollm2-135m":
        return load_folder(bundled.smollm2(resolve(params.run_root) / "students"))
    if hub := STUDENTS.get(params.student):
        repository, revision = hub.split("@")
        return _ready(*_pretrained(repository, revision=revision))
    return load_folder(_folder(params.student))


def _folder(name: str) -> Path:
    return Path(__file__).with_name(name) if name in STUDENTS else resolve(name)


def load_folder(folder: Path) -> Student:
    """Return the student saved in `folder`; raises TrainingError when there is none."""
    _check_folder(folder)
    return _ready(*_pretrained(str(folder), local_files_only=True))


def answering(params: Params, folder: Path | None) -> Student:
    """Return the student trained into `folder`, or else the untrained one, as it answers questions.

    Its weights are put `interpolation` of the way from where they began (WiSE-FT, Wortsman et al., 2022).
    """
    student = load_folder(folder) if folder else load(params)
    if folder and params.interpolation < 1:
        began = load(params).model.parameters()
        for weight, start in zip(student.model.parameters(), began, strict=True):
            weight.data = start.data.lerp(weight.data, params.interpolation)
    if precision(params) == "bf16":
        for weight in student.model.parameters():  # not what else it computes with, such as positions
            weight.data = weight.data.bfloat16()
    return student


def fingerprint(params: Params) -> dict[str, Any]:
    """Return what the untrained student is made of: hashes of its files, or a pinned revision."""
    if params.student == "smollm2-135m":
        return {"package": bundled.WEIGHTS_PACKAGE, "gguf": bundled.WEIGHTS_SHA256}
    if hub := STUDENTS.get(params.student):
        return dict(zip(("repository", "revision"), hub.split("@"), strict=True))
    folder = _folder(params.student)
    _check_folder(folder)
    files = {path for pattern in READ_FILES for path in folder.glob(pattern)}
    return {"files": {path.name: sha256(path) for path in sorted(files)}}


def label(params: Params) -> str:
    """Return the student's name; one from a folder is told from others of its name by its contents."""
    if params.student in STUDENTS:
        return params.student_name
    content = json.dumps(fingerprint(params), sort_keys=True)
    return f"{params.student_name}-{hashlib.sha256(content.encode()).hexdigest()[:8]}"


def precision(params: Params) -> str:
    """Return the format of a student's numbers; `auto`: by the processor's features. T5 overflows in fp16."""
    if params.precision != "auto":
        return params.precision
    return "bf16" if _has_bf16() else "fp32"


def _has_bf16() -> bool:
    if any(driver.exists() for driver in GPU_DRIVERS):  # else torch need not be imported
        import torch

        if torch.cuda.is_available():
            return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    facts = CPU_FACTS.read_text().splitlines() if CPU_FACTS.is_file() else []
    features = next((line for line in facts if line.startswith(("flags", "Features"))), "")
    return not {"avx512_bf16", "amx_bf16", "bf16"}.isdisjoint(features.split())  # the last one is Arm's


def _check_folder(folder: Path) -> None:
    if not (folder / "config.json").is_file() or not any(folder.glob("*.safetensors")):
        advice = "save a student there with save_pretrained (pickle files, which can run code, are not read)"
        raise TrainingError(f"{folder} needs config.json, tokenizer and weights (*.safetensors); {advice}")


def _pretrained(source: str, **options: Any) -> tuple[Any, Any]:
    """Return model and tokenizer from a folder or the hub: safetensors only, no code from there."""
    import torch
    import transformers

    auto: Any = transformers
    auto.utils.logging.disable_progress_bar()  # of weight files, which take a second
    try:
        config = auto.AutoConfig.from_pretrained(source, **options)
        loader = auto.AutoModelForSeq2SeqLM if config.is_encoder_decoder else auto.AutoModelForCausalLM
        model = loader.from_pretrained(source, dtype=torch.float32, use_safetensors=True, **options)
        tokenizer = auto.AutoTokenizer.from_pretrained(source, **options)
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split()).partition(" Please do not set")[0][:300]
        told = f"the student cannot be had from {source}: {reason}"
        raise TrainingError(f"{told} (docs/training.md)") from error
    family_of(model)
    if config.is_encoder_decoder:  # BART's own asks for beams, and bans what it said before
        start = config.decoder_start_token_id
        model.generation_config = auto.GenerationConfig(decoder_start_token_id=start)
    return model, tokenizer


def _ready(model: Any, tokenizer: Any) -> Student:
    """Return a student on the GPU if there is one, else on no more cores than this process may use."""
    import torch

    torch.set_num_threads(min(torch.get_num_threads(), cores()))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return Student(model.eval().to(device), tokenizer)


def family_of(model: Any) -> Family:
    """Return a model's family; raises TrainingError when it belongs to none."""
    kind = model.config.model_type
    if kind not in FAMILIES:
        raise TrainingError(f"a student of type {kind!r} is not supported; types are {', '.join(FAMILIES)}")
    return FAMILIES[kind]


def freeze(model: Any, layers: int) -> None:
    """Let training change only the layers above the `layers` lowest, and what follows them."""
    family = family_of(model)
    if not family.layers:
        raise TrainingError("frozen_layers is not possible with an encoder–decoder; set frozen_layers=0")
    stack = model.get_submodule(family.layers)
    if layers >= len(stack):
        raise TrainingError(f"frozen_layers={layers}, but the student has {len(stack)} layers; set fewer")
    model.requires_grad_(False)
    stack[layers:].requires_grad_(True)
    parent = model.get_submodule(family.layers.rpartition(".")[0])
    for name in family.after:
        if module := getattr(parent, name):
            module.requires_grad_(True)
