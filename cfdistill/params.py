"""The parameters of a study: YAML keys and the notebooks' names; the defaults are `params/offline.yaml`."""

import difflib
import re
import reprlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from cfdistill.errors import ParamsError
from cfdistill.methods import LOADER, METHODS

PACKAGE = Path(__file__).parent
BENCHMARKS: Mapping[str, Any] = yaml.load((PACKAGE / "data" / "benchmarks.yaml").read_text("utf-8"), LOADER)
STUDENTS: Mapping[str, str] = yaml.load((PACKAGE / "student" / "students.yaml").read_text("utf-8"), LOADER)
TESTBED = ("weasel-commonsense", "weasel-qualitative", "weasel-composition", "weasel-science")
DATASETS = (*TESTBED, "weasel-user", *BENCHMARKS)
SCORINGS = ("direct", "elimination", "rationale", "cloze", "likelihood", "label")
# what lies there reaches stages, not the name
PATHS = ("data_root", "scene_bank", "teacher_cache", "rationale_file")
NEUTRAL = (  # parameters that can change no result
    *("profile", "run_root", "results_root", "teacher_concurrency"),
    *("teacher_timeout_s", "teacher_requests_per_minute", "teacher_tokens_per_minute", "teacher_budget_usd"),
    *("teacher_prices", "allow_empty", "audit_questions"),
)
UNWRITABLE = re.compile("[\0\ud800-\udfff]")  # what no text file takes


def _param(default: Any, reaches: str, text: str, **limits: Any) -> Any:
    """Declare a parameter; `reaches` names the stages whose key holds its value."""
    return Field(default, description=text, json_schema_extra={"reaches": reaches}, **limits)


class Params(BaseModel):
    """Validated, immutable parameters of one study."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    # the study
    profile: str = _param("offline", "", "name of the folder under results_root")
    train_dataset: str = _param("weasel-commonsense", "metrics", "what the student is trained on")
    test_datasets: list[str] = _param(list(TESTBED), "", "what it is tested on")
    methods: list[str] = _param(["base", "ft", "ft-cot", "cf-distill"], "metrics", "methods to compare")
    student: str = _param("smollm2-135m", "", "the small language model: a name, or path/to/folder")
    seed: int = _param(0, "training metrics", "seed of training order and dropout", ge=0, lt=2**32)
    teacher: Literal["offline", "recorded", "live"] = _param("recorded", "", "who answers the prompts")
    data_source: Literal["files", "hub"] = _param("files", "data", "where benchmarks come from")
    data_root: str = _param("data", "", "folder with the benchmarks' official release files")
    run_root: str = _param("runs", "", "folder for stages; relative to the project")
    results_root: str = _param("results", "", "folder for tables and figures")
    # data
    data_seed: int = _param(0, "data metrics", "seed of the question sampler", ge=0, lt=2**32)
    train_scenes: int = _param(120, "data", "seen scenes used; 0 uses all", ge=0)
    train_questions: int = _param(120, "data", "training questions", ge=1)
    validation_questions: int = _param(40, "data", "validation questions", ge=1)
    test_questions: int = _param(240, "data", "questions in `id`, `shift` or `test`, at most", ge=1)
    new_questions: int = _param(300, "data", "questions in `new`, also of OOD data sets, at most", ge=1)
    spurious_rate: float = _param(0.9, "data", "share of stereotype answers, 0 to 1", ge=0, le=1)
    scene_bank: str = _param("", "", "a file of your own scenes, for weasel-user")
    tested: Literal["test", "development"] = _param("test", "data", "development: where recipes are chosen")
    # teacher
    teacher_model: str = _param("gpt-5.2", "", "model name sent to a live endpoint")
    teacher_base_url: str = _param("", "", "endpoint; empty: OpenAI's own")
    teacher_cache: str = _param("", "", "cache file; empty: the study's own, or the shipped recording")
    teacher_concurrency: int = _param(8, "", "requests under way at once", ge=1)
    teacher_timeout_s: float = _param(120.0, "", "longest silence while waiting for a response", gt=0)
    teacher_requests_per_minute: int = _param(0, "", "most requests in a minute; 0: no limit", ge=0)
    teacher_tokens_per_minute: int = _param(0, "", "most tokens in a minute, both ways; 0: no limit", ge=0)
    teacher_budget_usd: float = _param(0.0, "", "most that the model's answers may cost; 0: no cap", ge=0)
    teacher_max_tokens: int = _param(0, "", "longest answer, in tokens; 0: no limit", ge=0)
    teacher_prices: str = _param("", "", "YAML file of prices; empty: cfdistill/teacher/prices.yaml")
    teacher_noise: float = _param(0.05, "", "offline teacher's error rate", ge=0, le=1)
    allow_empty: bool = _param(False, "", "complete a stage of teacher's answers of which nothing is fit")
    # counterfactuals
    counterfactuals_per_question: int = _param(2, "counterfactuals", "target answers per question", ge=1)
    mask_source: Literal["teacher", "random"] = _param("teacher", "counterfactuals", "who names the words")
    reasoning_paths: int = _param(3, "counterfactuals", "reasoning paths K per candidate", ge=1)
    vote_threshold: int = _param(3, "counterfactuals", "paths that must reach the target; 0: no vote", ge=0)
    min_edit_ratio: float = _param(0.02, "counterfactuals", "smallest share of words changed", ge=0, le=1)
    max_edit_ratio: float = _param(0.8, "counterfactuals", "largest share of words changed", ge=0, le=1)
    leak_check: bool = _param(True, "counterfactuals", "drop rewrites that name the target answer")
    # rationales
    rationale_source: Literal["teacher", "file"] = _param("teacher", "rationales", "file: published ones")
    rationale_file: str = _param("", "", "JSONL of id, rationale, predicted (a letter or null)")
    # training
    epochs: float = _param(3.0, "training", "passes over a method's own examples", gt=0)
    max_steps: int = _param(0, "training", "steps, the same for every method; 0: by epochs", ge=0)
    batch_size: int = _param(4, "training", "examples per optimiser step", ge=1)
    learning_rate: float = _param(5.0e-4, "training", "peak, after 10 % warm-up", gt=0)
    frozen_layers: int = _param(12, "training", "lowest transformer layers left untouched", ge=0)
    max_length: int = _param(384, "training", "longest example, in tokens", ge=16)
    counterfactual_weight: float = _param(1.0, "training", "weight of a rewritten question's examples", gt=0)
    negative_view_weight: float = _param(1.0, "training", "weight of a negative view; others have 1", gt=0)
    validations: int = _param(3, "training", "tests on validation questions meanwhile; 0: never", ge=0)
    checkpoint: Literal["last", "best"] = _param("last", "training", "the student kept: best by validation")
    precision: Literal["auto", "fp32", "bf16"] = _param("auto", "", "number format; auto: the processor's")
    # evaluation
    interpolation: float = _param(
        1.0, "evaluation", "share of the way from the untrained student", ge=0, le=1
    )
    scorings: list[str] = _param(["direct"], "evaluation", "how an answer counts, direct always")
    max_new_tokens: int = _param(64, "evaluation", "longest answer, in tokens", ge=1)
    max_new_tokens_elimination: int = _param(160, "evaluation", "… of the negative view", ge=1)
    eval_batch_size: int = _param(128, "training evaluation", "most questions answered at once", ge=1)
    audit_questions: int = _param(20, "", "questions of the experiments in notebook 5; 0: none", ge=0)

    @field_validator("test_datasets", "methods", "scorings", mode="before")
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
        needs = {"cf-natural": "pool" in BENCHMARKS.get(self.train_dataset, {})}
        needs["ft-cot-balanced"] = self.train_dataset in TESTBED
        if unfit := [name for name in self.methods if not needs.get(name, True)]:
            told = f"needs questions that {self.train_dataset} does not have"
            raise ValueError(f"methods: {unfit[0]} {told}; leave it out")
        if self.train_dataset == "weasel-user":
            raise ValueError("train_dataset: scenes of one's own are for tests; train on another data set")
        if bool(self.scene_bank) != ("weasel-user" in self.test_datasets):
            raise ValueError("scene_bank: goes with weasel-user among test_datasets, which asks its scenes")
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
            if unknown := [value for value in values if value not in known]:
                raise ValueError(f"{name}: unknown {', '.join(unknown)}; known are {', '.join(known)}")
            if not values or len(set(values)) < len(values):
                raise ValueError(f"{name}: needs at least one value, each once")
        if self.checkpoint == "best" and not self.validations:
            raise ValueError("checkpoint: best is chosen by validations, of which there are 0")
        if "direct" not in self.scorings:
            raise ValueError("scorings: must hold direct, by which methods are compared")
        if self.vote_threshold > self.reasoning_paths:
            raise ValueError(f"vote_threshold is above reasoning_paths ({self.reasoning_paths})")
        if self.min_edit_ratio > self.max_edit_ratio:
            raise ValueError(f"min_edit_ratio is above max_edit_ratio ({self.max_edit_ratio})")
        return self

    @model_validator(mode="after")
    def _check_rationale_file(self) -> Self:
        if self.has_counterfactuals:
            return self
        if unfit := ", ".join(method for method in self.methods if METHODS[method].needs_teacher):
            fit = ", ".join(name for name, method in METHODS.items() if not method.needs_teacher)
            told = f"methods: {unfit} cannot be trained with rationale_source: file, which explains"
            raise ValueError(f"{told} originals from one side; use {fit} or rationale_source: teacher")
        if not self.rationale_file:
            raise ValueError("rationale_source: file needs rationale_file, the path of the rationales")
        return self

    @property
    def student_name(self) -> str:
        """Return the student's name, which is the folder's for one given by its path."""
        return Path(self.student).name

    @property
    def trained(self) -> list[str]:
        """Return the methods that train a student: all but the untrained one."""
        return [method for method in self.methods if METHODS[method].views]

    @property
    def has_counterfactuals(self) -> bool:
        """Tell whether the study rewrites questions: published rationales are of original ones only."""
        return self.rationale_source == "teacher"

    def for_method(self, method: str) -> Self:
        """Return the parameters by which a method's rewrites are made; of no method (""), the study's own."""
        return self.model_copy(update=dict(METHODS[method].changes)) if method else self

    def variants(self) -> dict[str, Self]:
        """Return the parameters of every set of rewrites or questions needed, by method; its own first."""
        made = {"": self}
        for method in self.methods:
            if (variant := self.for_method(method)) not in made.values() or METHODS[method].own_questions:
                made[method] = variant
        return made

    @classmethod
    def build(cls, values: Mapping[str, Any], where: str = "parameters") -> Self:
        """Validate a mapping of names to values; ParamsError names every bad one."""
        try:
            return cls.model_validate(dict(values))
        except ValidationError as error:
            raise ParamsError(f"{where}: {'; '.join(map(_sentence, error.errors()))}") from error

    @classmethod
    def from_namespace(cls, namespace: Mapping[str, Any]) -> Self:
        """Collect the parameters among a notebook's `globals()`; others above its imports are refused."""
        above = re.split(r"(?m)^(?:import|from) ", "\n".join(namespace.get("In", ())))[0]
        for name in re.findall(r"(?m)^(\w+) *=", above):
            if name not in cls.model_fields:
                raise ParamsError(f"this notebook: {_unknown(name)}")
        params = cls.build({k: namespace[k] for k in cls.model_fields if k in namespace}, "this notebook")
        if not params.trained:
            raise ParamsError("methods: base, the untrained student, needs a trained one beside it")
        return params

    @classmethod
    def from_yaml(cls, path: Path, overrides: Mapping[str, Any] | None = None) -> Self:
        """Read a YAML file of parameters and apply overrides; ParamsError says what is wrong with it."""
        return cls.build({**read_yaml(path), **(overrides or {})}, str(path))

    def reaching(self, stage: str) -> dict[str, Any]:
        """Return the parameters whose values stand in the key of `stage`."""
        fields: Mapping[str, Any] = type(self).model_fields
        named = [n for n, field in fields.items() if stage in field.json_schema_extra["reaches"].split()]
        return {name: getattr(self, name) for name in named}

    def results_values(self, *, paths: bool = False) -> dict[str, Any]:
        """Return every parameter that can change a result, the names of files only with `paths`."""
        left_out = NEUTRAL if paths else (*NEUTRAL, *PATHS)
        return {name: value for name, value in self.model_dump().items() if name not in left_out}


class _Loader(yaml.SafeLoader):
    """Reads YAML as usual, but refuses a key that stands in a mapping twice: the last one would win."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value]
        if twice := [key for key in keys if isinstance(key, str) and keys.count(key) > 1]:
            raise ValueError(f"{twice[0]} stands there twice; keep one line of it")
        mapping: dict[Any, Any] = super().construct_mapping(node, deep)
        return mapping


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML mapping; raises ParamsError when there is none, or it holds a key twice."""
    try:
        if not path.is_file():
            raise ParamsError(f"{path} does not exist; the profiles are in params/")
        values = yaml.load(path.read_text(encoding="utf-8-sig"), _Loader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # such as bad bytes, a 30th of February
        raise ParamsError(f"{path} is no valid YAML: {' '.join(str(error).split())}") from error
    except OSError as error:  # such as a name that is too long
        raise ParamsError(f"{str(path)[:200]} cannot be read: {error.strerror}") from error
    if not isinstance(values, dict):
        raise ParamsError(f"{path} must hold `name: value` lines")
    return values


def _sentence(error: Any) -> str:
    name = ".".join(map(str, error["loc"]))
    if error["type"] == "extra_forbidden":
        return _unknown(name)
    message = error["msg"].removeprefix("Value error, ")
    return f"{name}: {message}, got {reprlib.repr(error['input'])}" if name else message


def _unknown(name: str) -> str:
    near = difflib.get_close_matches(name, Params.model_fields, 1)
    advice = f"did you mean {near[0]}?" if near else f"known are {', '.join(Params.model_fields)}"
    return f"unknown parameter {name}; {advice}"
