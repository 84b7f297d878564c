"""The configuration: one frozen dataclass per section of the TOML, validated once by `load_config`.

Nothing reads a dict after that. Durations are integers of microseconds inside, "30m" or "7d" outside.
Over 300 lines because the sections and the one place that checks them are read together.
"""

from __future__ import annotations

import hashlib
import json
import os
import tomllib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Literal
from zoneinfo import available_timezones

from pydantic import BeforeValidator, ConfigDict, Field, PlainValidator, TypeAdapter, ValidationError
from pydantic_core import PydanticCustomError

from fraud.errors import ConfigError
from fraud.literals import duration_text, duration_us, toml_value
from fraud.rule_tables import policy_test_tree, read_rules, read_tests, read_value_lists, rule_tree, with_values
from fraud.rules import ListFile, PolicyTest, Rule, ValueList
from fraud.subjects import Kind, Subjects, check_rules, check_tests, subjects

_STRICT = ConfigDict(extra="forbid", str_strip_whitespace=False)


def _read_by(read: Callable[[object, str], object], where: str) -> PlainValidator:
    """Return a validator that takes what `read` gives, and its ValueError for the whole error text."""

    def validate(value: object) -> object:
        try:
            return read(value, where)
        except ValueError as error:
            raise PydanticCustomError("told", "{text}", {"text": str(error)}) from None

    return PlainValidator(validate)


def _instant_text(value: object) -> object:
    """Return a TOML time with a zone as the text it was written as; anything else as it is."""
    return value.isoformat() if isinstance(value, datetime) and value.tzinfo is not None else value


Duration = Annotated[int, BeforeValidator(duration_us)]
Instant = Annotated[str, BeforeValidator(_instant_text)]  # RFC 3339, or a TOML time
Share = Annotated[float, Field(gt=0.0, lt=1.0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]
Name = Annotated[str, Field(min_length=1)]
_MAX_LIST_BYTES = 512 * 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class LogConfig:
    """[log]: where the events are and which column is what."""

    __pydantic_config__ = _STRICT
    events: str = "events.parquet"
    user: Name = "user_id"
    time: Name = "ts"
    type: str | tuple[Name, ...] = "type"
    event_id: str | None = None
    session: str | None = None
    order: str | None = None
    time_unit: Literal["s", "ms", "us"] | None = None
    zone: str | None = None
    position: str | None = None
    delimiter: Annotated[str, Field(min_length=1, max_length=1)] = ","

    @property
    def has_clock(self) -> bool:
        """Return False where the log has an order but no time (`time = "position"`)."""
        return not (self.time == "position" and self.position is not None)

    @property
    def type_columns(self) -> tuple[str, ...]:
        """Return the columns whose texts, joined by "|", are the event's type; empty where every event is "event"."""
        if isinstance(self.type, str):
            return (self.type,) if self.type else ()
        return self.type


@dataclass(frozen=True, slots=True, kw_only=True)
class FieldsConfig:
    """[fields]: the columns a model may read beside user, time and type."""

    __pydantic_config__ = _STRICT
    amount: str | None = None
    numeric: tuple[Name, ...] = ()
    categorical: tuple[Name, ...] = ()
    entity: tuple[Name, ...] = ()
    key_types: tuple[Name, ...] = ()
    negative: Literal["refuse", "allow"] = "refuse"
    max_amount: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1e12


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionsConfig:
    """[sessions]: gap in microseconds; what one sequence is; the length of a context in events (even)."""

    __pydantic_config__ = _STRICT
    gap: Duration = 30 * 60 * 10**6
    scope: Literal["user", "session"] = "user"
    max_events: Annotated[int, Field(ge=4, le=4096, multiple_of=2)] = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelsConfig:
    """[labels]: a column of the log, or a table joined by `key`; delay in microseconds.

    source: the column of the label table that says who reported; each is watched by itself (`fraud.label_guard`).
    """

    __pydantic_config__ = _STRICT
    column: Name
    path: str | None = None
    key: tuple[Name, ...] = ()
    level: Literal["event", "session", "user"] = "event"
    known_at: str | None = None
    delay: Duration | None = None
    source: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DecisionsConfig:
    """[decisions]: the types a decision is made on (empty: every event) and the context it needs."""

    __pydantic_config__ = _STRICT
    on: tuple[Name, ...] = ()
    min_events: Count = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitConfig:
    """[split]: training, validation and test.

    train_from: events before it are history only. as_of: nothing of that time or later is read, no label that became
    known later; what it leaves unsettled is not judged. Without it the as-of is the end of the validation period, and
    the test's labels are the table's.
    """

    __pydantic_config__ = _STRICT
    by: Literal["time", "user", "column"] = "time"
    train_from: Instant | None = None
    train_until: Instant | None = None
    valid_until: Instant | None = None
    as_of: Instant | None = None
    fractions: tuple[Share, Share, Share] = (0.7, 0.15, 0.15)
    column: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """[model]: which scorer, and its size. heads, causal: of a transformer; members: what "fused" stacks."""

    __pydantic_config__ = _STRICT
    name: str = "lstm"
    layers: Annotated[int, Field(ge=1, le=16)] = 2
    width: Annotated[int, Field(ge=4, le=1024)] = 64
    heads: Annotated[int, Field(ge=1, le=64)] = 4
    causal: bool = True
    order_features: bool = True
    trees: Annotated[int, Field(ge=1, le=5000)] = 300
    leaves: Annotated[int, Field(ge=2, le=1024)] = 31
    members: tuple[Name, ...] = ("lstm", "boosting")


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingConfig:
    """[training]: how a scorer is fitted.

    negative_rate: the share of negatives kept (corrected in the logit).
    held_out: the share of the training users whose loss stops it early; with 0, all users train all epochs or trees.
    padded: the share of the training users who are read a second time, with harmless events put in (`fraud.padding`).
    """

    __pydantic_config__ = _STRICT
    epochs: Count = 8
    patience: Count = 4
    batch_events: Annotated[int, Field(ge=64, le=10_000_000)] = 2048
    learning_rate: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)] = 3e-3
    weight_decay: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] = 1e-4
    dropout: Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False)] = 0.1
    token_dropout: Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False)] = 0.1
    negative_rate: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)] = 1.0
    held_out: Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False)] = 0.1
    pretrain: Literal["none", "next", "masked"] = "none"
    pretrain_epochs: Count = 8
    precision: Literal["fp32", "bf16"] = "fp32"
    padded: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] = 0.0
    seed: Annotated[int, Field(ge=0, le=2**31 - 1)] = 0
    threads: Annotated[int, Field(ge=1, le=256)] = 1
    device: Literal["auto", "cpu", "cuda"] = "auto"


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyConfig:
    """[policy]: shares of the decision events that the model may have reviewed or blocked, or the cost of a review.

    lists, rules: what decides before the model; tests: what `fraud policy test` checks of all three.
    """

    __pydantic_config__ = _STRICT
    alert_budget: Share = 0.01
    block_budget: Annotated[float, Field(ge=0.0, lt=1.0, allow_inf_nan=False)] = 0.001
    costs: dict[Literal["review"], Annotated[float, Field(gt=0, allow_inf_nan=False)]] | None = None
    lists: Annotated[tuple[ValueList | ListFile, ...], _read_by(read_value_lists, "policy.lists")] = ()
    rules: Annotated[tuple[Rule, ...], _read_by(read_rules, "policy.rules")] = ()
    tests: Annotated[tuple[PolicyTest, ...], _read_by(read_tests, "policy.tests")] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class RetrainConfig:
    """[retrain]: how a challenger is made and what it must show.

    promote_if: each clause must hold at the worse end of the paired 95 % interval (`fraud.gate`).
    positives: the judged period grows backwards until it holds so many known frauds, the validation period before it
    until it holds half as many. window: at most so long before those is trained on; without it, all.
    max_slower: how many times the champion's time a score may take. max_miscalibration: how many times too high or too
    low the challenger's mean score may be.
    """

    __pydantic_config__ = _STRICT
    promote_if: Name = "ap >= champion - 0.02 and recall_at_budget >= champion - 0.05"
    positives: Annotated[int, Field(ge=10, le=1_000_000)] = 300
    window: Duration | None = None
    max_slower: Annotated[float, Field(ge=1, allow_inf_nan=False)] = 3.0
    max_miscalibration: Annotated[float, Field(gt=1, allow_inf_nan=False)] = 1.5


@dataclass(frozen=True, slots=True, kw_only=True)
class TrackingConfig:
    """[tracking]: MLflow."""

    __pydantic_config__ = _STRICT
    uri: Name = "sqlite:///mlflow.db"
    experiment: Name = "fraud"
    model_name: Name = "fraud"


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """The whole configuration. `root` is the folder that relative paths start from."""

    __pydantic_config__ = _STRICT
    log: LogConfig
    fields: FieldsConfig = field(default_factory=FieldsConfig)
    sessions: SessionsConfig = field(default_factory=SessionsConfig)
    labels: LabelsConfig | None = None
    decisions: DecisionsConfig = field(default_factory=DecisionsConfig)
    split: SplitConfig = field(default_factory=SplitConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    policy: PolicyConfig = field(default_factory=PolicyConfig)
    retrain: RetrainConfig = field(default_factory=RetrainConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    root: Path = Path()


_ADAPTER = TypeAdapter(Config)


def load_config(path: Path | str, overrides: Sequence[str] = ()) -> Config:
    """Return the validated configuration of a TOML file, with `section.field=value` overrides applied in order.

    Raises ConfigError that names the file, the setting, its value and what was expected.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such configuration file; `fraud init EVENTS -o {path}` writes one") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read as UTF-8 text ({error}); expected a TOML file") from None
    config = parse_config(text, source=str(path), root=path.parent, overrides=overrides)
    try:
        read_lists(config)  # now, and not after an hour of training
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
    return config


def read_lists(config: Config) -> tuple[ValueList, ...]:
    """Return the lists of [policy] with the values of those that name a file.

    Raises ConfigError that names the list, the file, the value and what was expected.
    """
    return tuple(_read_list(one, config.root) if isinstance(one, ListFile) else one for one in config.policy.lists)


def parse_config(text: str, *, source: str, root: Path, overrides: Sequence[str] = ()) -> Config:
    """Return the validated configuration of TOML text; `source` names it in errors, `root` is where paths start."""
    try:
        tree = tomllib.loads(text)
    except ValueError as error:  # TOMLDecodeError is one; a number of 5,000 digits is another
        raise ConfigError(f"{source}: not valid TOML: {error}") from None
    except RecursionError:
        raise ConfigError(f"{source}: not valid TOML: nested too deeply") from None
    if "root" in tree:
        raise ConfigError(f"{source}: unknown name 'root'; known here: {_known_names(())}")
    for override in overrides:
        _apply_override(tree, override)
    if "log" not in tree:
        raise ConfigError(f"{source}: section [log] is missing; it says which file and columns hold the events")
    try:
        config = _ADAPTER.validate_python({**tree, "root": root})
    except ValidationError as error:
        raise ConfigError(f"{source}: {_explain(error)}") from None
    _check_across_fields(config, source)
    return config


def _read_list(one: ListFile, root: Path) -> ValueList:
    path = root / one.path
    where = f"policy.lists ({one.name})"
    try:
        # Only a plain file has an end that can be relied on.
        if path.exists() and not path.is_file():
            raise ConfigError(f"{where}.path = {one.path!r}: is no file; expected a file with one value a line")
        if os.path.getsize(path) > _MAX_LIST_BYTES:
            raise ConfigError(f"{where}.path = {one.path!r}: over {_MAX_LIST_BYTES:,} bytes; expected a smaller list")
        return with_values(one, path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{where}.path = {one.path!r}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{where}.path = {one.path!r}: not UTF-8 text ({error.reason})") from None
    except ValueError as error:
        raise ConfigError(f"{where}.path: {error}") from None


def _apply_override(tree: dict[str, Any], override: str) -> None:  # Any: a TOML tree
    name, separator, value = override.partition("=")
    section, dot, key = name.strip().partition(".")
    if not separator or not dot or not key:
        raise ConfigError(f"--set {override!r}: expected SECTION.FIELD=VALUE, for example model.name=boosting")
    try:
        parsed: object = tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        parsed = value
    if not isinstance(tree.get(section, {}), dict):
        raise ConfigError(f"--set {override!r}: {section} = {tree[section]!r} in the file is no section")
    tree[section] = {**tree.get(section, {}), key: parsed}


def _known_names(location: tuple[str, ...]) -> str:
    kind: type = Config
    for step in location:
        annotation = {f.name: f.type for f in fields(kind)}.get(step)
        found = next((c for c in _SECTIONS if c.__name__ in str(annotation)), None)
        if found is None:
            break
        kind = found
    return ", ".join(f.name for f in fields(kind) if f.name != "root")


_SECTIONS: tuple[type, ...] = (
    LogConfig, FieldsConfig, SessionsConfig, LabelsConfig, DecisionsConfig,
    SplitConfig, ModelConfig, TrainingConfig, PolicyConfig, RetrainConfig, TrackingConfig,
)  # fmt: skip


def _explain(error: ValidationError) -> str:
    lines: list[str] = []
    for problem in error.errors():
        steps = tuple(str(step) for step in problem["loc"])
        where = ".".join(steps)
        if problem["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
            lines.append(f"unknown name '{where}'; known here: {_known_names(steps[:-1])}")
        elif problem["type"] == "told":
            lines.append(problem["msg"])
        elif problem["type"] in ("missing", "missing_argument"):
            lines.append(f"'{where}' is missing")
        else:
            lines.append(f"{where} = {problem['input']!r}: {problem['msg']}")
    return "; ".join(lines)


def _check_across_fields(config: Config, source: str) -> None:
    """Raise ConfigError for settings that are each valid but not together."""

    def refuse(text: str) -> None:
        raise ConfigError(f"{source}: {text}")

    log, labels, split = config.log, config.labels, config.split
    roles = {
        "log.user": log.user,
        "log.time": log.time if log.has_clock else log.position,
        "log.event_id": log.event_id,
    }
    read = [config.fields.amount, *config.fields.numeric, *config.fields.categorical, *config.fields.entity]
    read += [*log.type_columns]
    present = [name for name in read if name]
    for name in present:
        if present.count(name) > 1:
            refuse(f"column {name!r} is declared twice among log.type and [fields]; each column has one meaning")
        if name in roles.values():
            refuse(f"column {name!r} is both a field and {next(r for r, c in roles.items() if c == name)}")
    if labels is not None:
        leaks = {labels.column, labels.known_at} if labels.path is None else set[str | None]()
        for name in present:
            if name in leaks:
                refuse(f"column {name!r} is the label (or tells when it was known): a model must not read it")
        if labels.path is not None and not labels.key:
            refuse("labels.path needs labels.key: the columns that join the label table to the log")
        if labels.path is None and labels.key:
            refuse("labels.key joins a label table, but labels.path is not set")
        is_keyed = bool({"session_id", log.session} & set(labels.key))
        if labels.level == "session" and labels.path is not None and not is_keyed:
            refuse('labels.level = "session" needs "session_id" (or the column of log.session) in labels.key')
    if not config.model.causal and config.model.name != "transformer":
        refuse(f"model.causal = false is for the transformer alone, but model.name = {config.model.name!r}")
    if not config.model.causal and config.training.pretrain != "none":
        refuse(
            f"training.pretrain = {config.training.pretrain!r} needs model.causal = true: a network that looks both "
            "ways sees what it should predict"
        )
    names = config.model.members if config.model.name == "fused" else (config.model.name,)
    if "transformer" in names and config.model.width % (2 * config.model.heads):
        refuse(
            f"model.width = {config.model.width}: expected a multiple of twice model.heads = {config.model.heads} "
            "(each head turns pairs of numbers)"
        )
    if split.by == "time":
        if (split.train_until is None) != (split.valid_until is None):
            refuse("split.train_until and split.valid_until go together")
        if split.train_from is not None and split.train_until is None:
            refuse("split.train_from needs split.train_until and split.valid_until")
        if labels is not None and not log.has_clock:
            refuse('split.by = "time" needs a clock, but log.time = "position"; expected "user" or "column"')
    if abs(sum(split.fractions) - 1.0) > 1e-9:
        refuse(f"split.fractions = {list(split.fractions)}: expected three positive numbers that add up to 1")
    if labels is not None and labels.delay is not None and not log.has_clock:
        refuse('labels.delay needs a clock, but log.time = "position"')
    if set(config.tracking.model_name) & set("/:\\") or config.tracking.model_name.startswith("."):
        refuse(f"tracking.model_name = {config.tracking.model_name!r}: expected a name without / : \\ or a leading dot")
    if config.retrain.window == 0:
        refuse('retrain.window = "0s": expected a duration above 0, or none')
    if split.as_of is not None and not log.has_clock:
        refuse('split.as_of needs a clock, but log.time = "position"')
    if split.train_from is not None and split.by != "time":
        refuse(f'split.train_from needs split.by = "time", but it is {split.by!r}')
    if labels is not None and labels.source is not None and labels.path is None:
        refuse("labels.source names a column of a label table, but labels.path is not set")
    if log.zone is not None and log.zone not in available_timezones():
        refuse(f"log.zone = {log.zone!r}: expected an IANA zone such as Europe/Berlin")
    if split.by == "column" and not split.column:
        refuse('split.by = "column" needs split.column')
    if log.position is not None and log.time != "position":
        refuse('log.position is read only with log.time = "position"')
    try:
        known = subjects_of(config)
        names = check_rules(config.policy.lists, config.policy.rules, known, prefix="policy.")
        columns = [*(role for role in (*roles.values(), log.session, log.order) if role), *present]
        check_tests(config.policy.tests, names, columns, known, prefix="policy.")
    except ValueError as error:
        refuse(str(error))


def subjects_of(config: Config) -> Subjects:
    """Return what a rule of [policy] can ask of the events of this log."""
    chosen = config.fields
    declared: dict[str, Kind] = {config.log.user: "user"}
    declared |= {} if chosen.amount is None else {chosen.amount: "amount"}
    declared |= dict.fromkeys(chosen.numeric, "numeric")
    declared |= dict.fromkeys(chosen.categorical, "text")
    declared |= dict.fromkeys(chosen.entity, "entity")
    has_clock = config.log.has_clock
    return subjects(declared, key_types=chosen.key_types, on=config.decisions.on, has_clock=has_clock)


def state_hash(config: Config) -> str:
    """Return sha256 hex of what of [log], [fields] and [sessions] shapes a user's stored state (not the paths)."""
    log = {name: value for name, value in asdict(config.log).items() if name not in ("events", "delimiter")}
    shape = {"log": log, "fields": asdict(config.fields), "sessions": asdict(config.sessions)}
    return hashlib.sha256(json.dumps(shape, sort_keys=True).encode()).hexdigest()


def stored_state_hash(config: Config) -> str:
    """Return sha256 hex of all that shapes what a service stores of users and entities.

    Beside `state_hash` that is how labels are counted: the hour in which an event nobody has labelled counts as honest
    was written with the event, and a label takes it back from there.
    """
    labels = config.labels
    counted = None if labels is None else (labels.path is not None, labels.delay)
    return hashlib.sha256(f"{state_hash(config)} {counted}".encode()).hexdigest()


def config_to_toml(config: Config) -> str:
    """Return TOML text that `parse_config` reads back as an equal configuration (but for `root`)."""
    blocks: list[str] = []
    for section in fields(config):
        value = getattr(config, section.name)
        if not is_dataclass(value):
            continue
        lines = [f"[{section.name}]"]
        for entry in fields(value):
            cell = getattr(value, entry.name)
            if cell is not None and not (cell == () and entry.name in _TREES):
                lines.append(f"{entry.name} = {_toml_of(cell, entry.name)}")
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks) + "\n"


# Arrays of tables: written on one line each, for a section is one block of lines "name = value".
_TREES: dict[str, Callable[[Any], object]] = {"lists": rule_tree, "rules": rule_tree, "tests": policy_test_tree}


def _toml_of(cell: Any, name: str) -> str:  # Any: a value of the configuration, told apart below
    if name in ("gap", "delay", "window"):
        return toml_value(duration_text(cell))
    return toml_value([_TREES[name](one) for one in cell] if name in _TREES else cell)
