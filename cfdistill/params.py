"""The parameters of a study: one model, whose fields are the YAML keys and the notebooks' names.

Defaults are the default study (`params/offline.yaml`), so a notebook opened by hand runs it too.
"""

from __future__ import annotations

import re
import reprlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from cfdistill.errors import ParamsError
from cfdistill.families import HUB
from cfdistill.methods import METHODS
from cfdistill.schema import UNWRITABLE

STAGES = ("data", "counterfactuals", "rationales", "training", "evaluation", "audits", "metrics")
FILE_METHODS = ("ft", "ft-cot")  # those that need no more than one rationale of each original question
DATASETS = (
    "weasel-commonsense",
    "weasel-qualitative",
    "weasel-composition",
    "weasel-science",
    "weasel-all",
    "csqa",
    "quarel",
    "qasc",
    "arc-challenge",
    "arc-challenge-dev",
    "arc-easy",
    "openbookqa",
    "user",
)
SCORINGS = ("direct", "elimination", "vote", "likelihood", "label")
STUDENTS = ("smollm2-135m", "tiny-random", *HUB)


def _param(default: Any, stage: str | None, text: str, **limits: Any) -> Any:
    """Declare a parameter; `stage` is the first stage whose result it changes (None: none)."""
    return Field(default, description=text, json_schema_extra={"stage": stage}, **limits)


class Params(BaseModel):
    """Validated, immutable parameters of one study."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    # the study
    profile: str = _param("offline", None, "name of the folder under results_root")
    train_dataset: str = _param("weasel-commonsense", "counterfactuals", "what the student is trained on")
    test_datasets: list[str] = _param(
        list(DATASETS[:4]), "metrics", "what it is tested on; others than train_dataset are OOD"
    )
    methods: list[str] = _param(["ft", "ft-cot", "cf-distill"], "metrics", "training methods to compare")
    student: str = _param(
        "smollm2-135m", "training", "the small language model: a name, or path/to/folder with safetensors"
    )
    strategy_tokens: Literal["text", "special"] = _param(
        "text", "training", "how strategy tokens are written: text | special (one new token each)"
    )
    seed: int = _param(0, "training", "seed of training order and dropout", ge=0, lt=2**32)
    teacher: Literal["offline", "recorded", "live"] = _param(
        "offline", "counterfactuals", "who answers the prompts: offline | recorded | live"
    )
    data_source: Literal["files", "hub"] = _param(
        "files", "data", "benchmarks from official files under data_root, or from the hub: files | hub"
    )
    data_root: str = _param("data", "data", "folder with the benchmarks' official release files")
    run_root: str = _param("runs", None, "folder for stage directories; relative to the project")
    results_root: str = _param("results", None, "folder for tables and figures")
    gather: list[str] = _param([], None, "further results folders to draw with this one")
    # data
    data_seed: int = _param(0, "data", "seed of the question sampler", ge=0, lt=2**32)
    train_scenes: int = _param(60, "data", "seen scenes used; 0 uses all", ge=0)
    train_questions: int = _param(60, "data", "training questions", ge=1)
    validation_questions: int = _param(40, "data", "validation questions", ge=1)
    test_questions: int = _param(120, "data", "questions in `id`, `shift` or `test`, at most", ge=1)
    new_questions: int = _param(50, "data", "questions in `new`, also of OOD data sets, at most", ge=1)
    spurious_rate: float = _param(0.9, "data", "share of stereotype answers, 0 to 1", ge=0, le=1)
    # teacher
    teacher_model: str = _param("gpt-5.2", "counterfactuals", "model name sent to a live endpoint")
    teacher_base_url: str = _param("", "counterfactuals", "endpoint; empty: OpenAI's own")
    teacher_cache: str = _param(
        "", "counterfactuals", "cache file; empty: run_root/teacher/cache.sqlite, or the shipped recording"
    )
    teacher_batch: bool = _param(
        False, None, "never ask directly: stop and count what a batch must answer; needs teacher: live"
    )
    teacher_concurrency: int = _param(8, None, "requests under way at once", ge=1)
    teacher_timeout_s: float = _param(120.0, None, "longest silence while waiting for a response", gt=0)
    teacher_requests_per_minute: int = _param(0, None, "most requests sent in a minute; 0: no limit", ge=0)
    teacher_tokens_per_minute: int = _param(
        0, None, "most tokens, prompts and completions, in a minute; 0: no limit", ge=0
    )
    teacher_budget_usd: float = _param(
        0.0, None, "most that all answers of the model in the cache may cost; 0: no cap", ge=0
    )
    teacher_max_tokens: int = _param(0, "counterfactuals", "longest answer, in tokens; 0: no limit", ge=0)
    teacher_prices: str = _param("", None, "YAML file of prices; empty: cfdistill/teacher/prices.yaml")
    teacher_noise: float = _param(0.05, "counterfactuals", "offline teacher's error rate", ge=0, le=1)
    # counterfactuals
    counterfactuals_per_question: int = _param(2, "counterfactuals", "target answers per question", ge=1)
    mask_source: Literal["teacher", "random"] = _param(
        "teacher", "counterfactuals", "who names the words to replace: teacher | random (as a control)"
    )
    reasoning_paths: int = _param(5, "counterfactuals", "reasoning paths K per candidate", ge=1)
    vote_threshold: int = _param(4, "counterfactuals", "paths that must reach the target; 0: no vote", ge=0)
    min_edit_ratio: float = _param(0.02, "counterfactuals", "smallest share of tokens changed", ge=0, le=1)
    max_edit_ratio: float = _param(0.8, "counterfactuals", "largest share of tokens changed", ge=0, le=1)
    leak_check: bool = _param(True, "counterfactuals", "drop rewrites that name the target answer")
    round_trip_check: bool = _param(
        False, "counterfactuals", "ask once more with the options in another order"
    )
    # rationales
    rationale_source: Literal["teacher", "file"] = _param(
        "teacher", "rationales", "who explains: teacher | file (published ones, for ft and ft-cot)"
    )
    rationale_file: str = _param(
        "", "rationales", "JSONL of id, rationale, predicted (a letter or null), for source file"
    )
    # training
    epochs: float = _param(3.0, "training", "passes over a method's own examples", gt=0)
    max_steps: int = _param(0, "training", "optimiser steps, the same for every method; 0: by epochs", ge=0)
    batch_size: int = _param(4, "training", "examples per optimiser step", ge=1)
    accumulation_steps: int = _param(
        1,
        "training",
        "parts of an optimiser step that are computed one after the other, to save memory",
        ge=1,
    )
    learning_rate: float = _param(5.0e-4, "training", "peak, after 10 % warm-up", gt=0)
    frozen_layers: int = _param(12, "training", "lowest transformer layers left untouched", ge=0)
    max_length: int = _param(384, "training", "longest example, in tokens", ge=16)
    counterfactual_weight: float = _param(
        1.0, "training", "weight in the loss of an example with a rewritten question; originals have 1", gt=0
    )
    negative_view_weight: float = _param(
        1.0, "training", "weight in the loss of a negative view; other views have 1", gt=0
    )
    validations: int = _param(
        3, "training", "how often the student is tested on validation questions meanwhile; 0: never", ge=0
    )
    checkpoint: Literal["last", "best"] = _param(
        "last", "training", "the student to keep: last | best (of the validations, by accuracy)"
    )
    patience: int = _param(
        0, "training", "validations without a better one after which training stops; 0: it never does", ge=0
    )
    tensorboard: bool = _param(False, None, "also log to run_root/tensorboard; needs the extra of that name")
    # evaluation
    scorings: list[str] = _param(["direct"], "evaluation", "direct | elimination | vote | likelihood | label")
    max_new_tokens: int = _param(64, "evaluation", "longest answer, in tokens", ge=1)
    max_new_tokens_elimination: int = _param(
        160, "evaluation", "longest answer of the negative view, in tokens", ge=1
    )
    eval_batch_size: int = _param(64, None, "questions generated together", ge=1)
    audit_questions: int = _param(20, "audits", "questions asked in each audit of a student; 0: none", ge=0)
    bootstrap_samples: int = _param(2000, "metrics", "resamples for intervals", ge=100)

    @field_validator("test_datasets", "methods", "scorings", "gather", mode="before")
    @classmethod
    def _split_list(cls, value: Any) -> Any:
        """Accept "a,b" beside ["a", "b"], which is what a command line can give."""
        return [part.strip() for part in value.split(",")] if isinstance(value, str) else value

    @model_validator(mode="after")
    def _check_texts(self) -> Self:
        for name, value in self:
            if UNWRITABLE.search("".join(map(str, value)) if isinstance(value, list) else str(value)):
                raise ValueError(f"{name}: holds NUL or half a character")
        if not re.fullmatch(r"\w[\w.-]{0,99}", self.profile):  # a folder of that name is emptied
            raise ValueError(f"profile: must be a plain name such as offline, not {self.profile!r}")
        return self

    @model_validator(mode="after")
    def _check_names(self) -> Self:
        for name, values, known in (
            ("train_dataset", [self.train_dataset], DATASETS),
            ("test_datasets", self.test_datasets, DATASETS),
            ("methods", self.methods, tuple(METHODS)),
            ("scorings", self.scorings, SCORINGS),
            ("student", [self.student], (*STUDENTS, *([self.student] if "/" in self.student else []))),
        ):
            _check_list(name, values, known)
        if self.checkpoint == "best" and not self.validations:
            raise ValueError("checkpoint: best is chosen by validations, of which there are 0")
        if self.patience and self.checkpoint == "last":
            raise ValueError("patience: needs checkpoint: best, or the worse student would be kept")
        if self.teacher_batch and self.teacher != "live":
            raise ValueError(f"teacher_batch: needs teacher: live, not {self.teacher}")
        if "direct" not in self.scorings:
            raise ValueError("scorings: must hold direct, by which methods are compared")
        if "vote" in self.scorings and "elimination" not in self.scorings:
            raise ValueError("scorings: vote needs elimination beside direct: both views vote")
        if self.vote_threshold > self.reasoning_paths:
            raise ValueError(f"vote_threshold is above reasoning_paths ({self.reasoning_paths})")
        if self.min_edit_ratio > self.max_edit_ratio:
            raise ValueError(f"min_edit_ratio is above max_edit_ratio ({self.max_edit_ratio})")
        return self

    @model_validator(mode="after")
    def _check_rationale_file(self) -> Self:
        if self.has_counterfactuals:
            return self
        if unfit := [method for method in self.methods if method not in FILE_METHODS]:
            raise ValueError(
                f"methods: {', '.join(unfit)} cannot be trained with rationale_source: file, which explains "
                f"originals from one side; use {', '.join(FILE_METHODS)} or rationale_source: teacher"
            )
        if not self.rationale_file:
            raise ValueError("rationale_source: file needs rationale_file, the path of the rationales")
        return self

    @property
    def student_name(self) -> str:
        """Return the student's name, which is the folder's for one given by its path."""
        return Path(self.student).name

    @property
    def has_counterfactuals(self) -> bool:
        """Tell whether the study rewrites questions: published rationales are of original ones only."""
        return self.rationale_source == "teacher"

    def for_method(self, method: str) -> Self:
        """Return the parameters by which a method's counterfactuals and rationales are made."""
        return self.model_copy(update=dict(METHODS[method].changes))

    def variants(self) -> list[Self]:
        """Return the parameters of every set of counterfactuals the methods need, the study's own first."""
        made = [self]
        made += [variant for method in self.methods if (variant := self.for_method(method)) not in made]
        return made

    @classmethod
    def build(cls, values: Mapping[str, Any], where: str = "parameters") -> Self:
        """Validate a mapping of parameter names to values.

        Raises:
            ParamsError: one sentence naming every bad parameter.
        """
        try:
            return cls.model_validate(dict(values))
        except ValidationError as error:
            raise ParamsError(f"{where}: {'; '.join(map(_sentence, error.errors()))}") from error

    @classmethod
    def from_namespace(cls, namespace: Mapping[str, Any]) -> Self:
        """Collect the parameters among a notebook's `globals()`, declared or injected."""
        return cls.build({k: namespace[k] for k in cls.model_fields if k in namespace}, "this notebook")

    @classmethod
    def from_yaml(cls, path: Path, overrides: Mapping[str, Any] | None = None) -> Self:
        """Read a YAML file of parameters and apply overrides.

        Raises:
            ParamsError: the file is missing, no YAML mapping, or holds a bad parameter.
        """
        return cls.build({**read_yaml(path), **(overrides or {})}, str(path))

    def key(self, stage: str, **extra: str) -> dict[str, Any]:
        """Return the parameters that can change the result of `stage`, and `extra`."""
        reach = STAGES[: STAGES.index(stage) + 1]
        return {name: getattr(self, name) for name, first in field_stages().items() if first in reach} | extra


def field_stages() -> dict[str, str | None]:
    """Return for every parameter the first stage whose result it changes."""
    return {
        name: field.json_schema_extra["stage"]  # type: ignore[index, misc]
        for name, field in Params.model_fields.items()
    }


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML mapping; raises ParamsError when there is none."""
    try:
        if not path.is_file():
            raise ParamsError(f"{path} does not exist; the profiles are in params/")
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # such as bad bytes, a 30th of February
        raise ParamsError(f"{path} is no valid YAML: {' '.join(str(error).split())}") from error
    except OSError as error:  # such as a name that is too long
        raise ParamsError(f"{str(path)[:200]} cannot be read: {error.strerror}") from error
    if not isinstance(values, dict):
        raise ParamsError(f"{path} must hold `name: value` lines")
    return values


def _check_list(name: str, values: list[str], known: tuple[str, ...]) -> None:
    unknown = [value for value in values if value not in known]
    if unknown:
        raise ValueError(f"{name}: unknown {', '.join(unknown)}; known are {', '.join(known)}")
    if not values or len(set(values)) < len(values):
        raise ValueError(f"{name}: needs at least one value, each once")


def _sentence(error: Any) -> str:
    name = ".".join(map(str, error["loc"]))
    if error["type"] == "extra_forbidden":
        return f"unknown parameter {name}; known are {', '.join(Params.model_fields)}"
    message = error["msg"].removeprefix("Value error, ")
    return f"{name}: {message}, got {reprlib.repr(error['input'])}" if name else message
