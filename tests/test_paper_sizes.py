"""The paper's students at their own sizes, with random weights: each makes a cell of the paper's grids."""

import gzip
import json
import os
import shutil
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context

import pandas as pd
import pytest
import torch
import transformers
from studies import TEST_DATA
from tiny_families import tokenizer_of

from cfdistill import files, pipeline
from cfdistill.params import STUDENTS
from cfdistill.study import grid

OPT_WIDE = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "ffn_dim": 4096}
OPT_WIDE |= {"word_embed_proj_dim": 512, "do_layer_norm_before": False}
NEO = {"hidden_size": 768, "num_layers": 12, "num_heads": 12, "attention_types": [[["global", "local"], 6]]}
SIDES = {"layers": 6, "attention_heads": 12, "ffn_dim": 3072}
BART = {f"{side}_{name}": n for side in ("encoder", "decoder") for name, n in SIDES.items()}
T5 = {"d_model": 768, "d_ff": 3072, "num_layers": 12, "num_heads": 12}
SIZES = {  # family, configuration where it is not that one's default, parameters of the published student
    "gpt2": ("gpt2", {}, 124_439_808),
    "gpt2-medium": ("gpt2", {"n_embd": 1024, "n_layer": 24, "n_head": 16}, 354_823_168),
    "opt-125m": ("opt", {}, 125_239_296),
    "opt-350m": ("opt", OPT_WIDE, 331_196_416),
    "gpt-neo-125m": ("gpt_neo", NEO, 125_198_592),
    "bart-base": ("bart", BART | {"d_model": 768}, 139_420_416),
    "t5-base": ("t5", T5 | {"decoder_start_token_id": 0}, 222_903_552),
}
OPT_TOKENIZER = {"tokenizer_class": "GPT2Tokenizer", "add_bos_token": True, "pad_token": "<pad>"}
OPT_TOKENIZER |= {f"{name}_token": "</s>" for name in ("bos", "eos", "unk")}
SMALL = {"train_questions": 8, "validation_questions": 4, "test_questions": 4, "new_questions": 4}
SMALL |= {"max_steps": 2, "validations": 1, "max_new_tokens": 8}  # AdamW's moments are there from step 2 on
REAL = {"train_dataset": "csqa", "test_datasets": ["csqa"], "teacher": "recorded"}
REAL |= {"counterfactuals_per_question": 1, "reasoning_paths": 3, "vote_threshold": 3}  # as was recorded
BUILT_IN = {"train_dataset": "weasel-commonsense", "test_datasets": ["weasel-science"], "teacher": "offline"}
BENCHMARKS = TEST_DATA / "benchmarks"
VALUES = SMALL | {"data_root": str(BENCHMARKS)} | (REAL if BENCHMARKS.is_dir() else BUILT_IN)
RECORDED = files.project_root() / "cfdistill" / "teacher" / "recorded" / "csqa.answers.jsonl.gz"
MEMORY = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def lay_out(name, cache):
    """Save a student of random weights as the hub's cache holds the pinned one; return its parameters."""
    family, changes, _ = SIZES[name]
    repository, revision = STUDENTS[name].split("@")
    folder = cache / f"models--{repository.replace('/', '--')}"
    snapshot = folder / "snapshots" / revision
    kind = "Seq2SeqLM" if family in ("bart", "t5") else "CausalLM"
    torch.manual_seed(1)
    config = transformers.AutoConfig.for_model(family, **changes)
    model = getattr(transformers, f"AutoModelFor{kind}").from_config(config)
    model.save_pretrained(snapshot)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text(revision)
    answers = [json.loads(line)["response"] for line in gzip.decompress(RECORDED.read_bytes()).splitlines()]
    texts = [json.loads(answer)["choices"][0]["message"]["content"] for answer in answers]
    tokenizer = tokenizer_of(family, texts, 16000)
    if family == "opt":  # whose repositories have no tokenizer.json
        tokenizer.backend_tokenizer.model.save(str(snapshot))
        (snapshot / "tokenizer_config.json").write_text(json.dumps(OPT_TOKENIZER))
    else:
        tokenizer.save_pretrained(snapshot)
    assert transformers.AutoTokenizer.from_pretrained(snapshot).encode(texts[0]) == tokenizer.encode(texts[0])
    return model.num_parameters()


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", SIZES)
def test_a_student_of_the_papers_size_is_trained_and_answers(name, tmp_path):
    if min(MEMORY, shutil.disk_usage(tmp_path).free) < 15 * 2**30:
        pytest.skip("a 350M student and its checkpoint need 16 GB of memory and of disk")
    cache, places = tmp_path / "hub", {place: str(tmp_path / place) for place in ("run_root", "results_root")}
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as own:  # whose memory a job would inherit
        parameters = own.submit(lay_out, name, cache).result()
    assert parameters == SIZES[name][-1]
    paper = "fig6" if name in ("bart-base", "t5-base") else "table1"
    made = grid.read(files.project_root() / "params" / "paper" / f"{paper}.yaml", VALUES | places)
    cell = f"{VALUES['train_dataset']}-cf-distill-{name}-seed0"
    made = replace(made, cells={cell: made.cells[cell]})
    grid.prepare(made)
    params, plan = made.cells[cell], tmp_path / "plan.json"
    files.write_json(plan, {cell: {"folder": str(made.folder / cell), "params": dict(params)}})
    offline = {"HF_HUB_CACHE": str(cache), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "cfdistill.cli", "job", str(plan), cell]  # as workflow/Snakefile has it
    done = subprocess.run(command, env=os.environ | offline, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    trained = pipeline.find("training", params, method="cf-distill")
    manifest, log = trained.manifest(), pd.read_csv(trained.path / "log.csv")
    assert "@".join(manifest["key"]["student"].values()) == STUDENTS[name]  # repository and pinned revision
    assert log["loss"].notna().tolist() == [True, True]
    peak = manifest["notes"]["peak_memory_gib"]
    assert peak > 16 * parameters / 2**30  # every layer is trained
    answers = pipeline.predictions(params, "cf-distill", *params.test_datasets)
    assert len(answers) >= 4
    assert all(0 <= answer.predicted < answer.options for answer in answers)
    assert grid.finished(made) == {cell: made.folder / cell}
    seconds, speed = log.iloc[-1][["seconds", "tokens_per_s"]]
    print(f"| `{name}` | {parameters / 1e6:.1f} | {peak:.1f} | {seconds:.1f} | {seconds * speed:.0f} |")
    shutil.rmtree(tmp_path)  # 8 GiB
