"""From enriched events to integer fields: the vocabulary, fitted on training rows only, and `encode`.

An event becomes one row of F small integers, one for each field. In every field id 0 is padding, 1 is unknown (trained
by token dropout), 2 is "none" (a null, or no past yet), known values start at 3. Counts are sums over rows, so the
vocabulary of a log read in parts is the vocabulary of the whole.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from fraud.enrich import Enriched
from fraud.entities import RISK_NAMES
from fraud.errors import BundleError
from fraud.events import BoolArray, FloatArray, IntArray, Text

PADDING_ID, UNKNOWN_ID, NONE_ID, FIRST_ID = 0, 1, 2, 3
MAX_VALUES = 4096
_TIME_FIELDS = frozenset({"session_start", "gap", "since_session", "hour"})
# Even quantiles, and the tails: on the handbook's cards 22 % of the frauds are among the 0.2 % largest amounts; edges
# at 1/64 ... 1/4096 from either end took an LSTM's AP on the first fold from .54 to .64.
N_QUANTILES = 32
N_BIGRAMS = 64
_QUANTILE_BITS = 40  # of a float64: keeps 12 bits of mantissa, so a quantile is exact to 1 part in 4,096
_TENTH_SECOND_US = 10**5
_N_SHARES = 17  # buckets of a share: 0, up to 1/16, ... up to 1
_SMALLEST_SPREAD = 0.05  # of log amounts: to a user who always pays the same, 5 % more is one step
# Of all risks those that a network gets as a field each; boosting reads all.
_RISK_FIELDS = (
    "known_frauds_7d",
    "known_frauds_28d",
    "volume_28d",
    "fraud_share_7d",
    "fraud_share_28d",
    "fraud_run",
    "fraud_run_days",
    "days_since_last_fraud",
)

TokenArray = npt.NDArray[np.int16]
Kind = Literal["text", "quantile", "octave", "share", "small"]
ORDERED_KINDS: tuple[Kind, ...] = ("quantile", "octave", "share")
Risk = Mapping[str, FloatArray]
Column = Text | npt.NDArray[np.generic]


@dataclass(frozen=True, slots=True)
class Field:
    """One field: `values` are the known texts, most frequent first (text), or the edges between buckets (quantile)."""

    name: str
    kind: Kind
    values: tuple[str, ...] | tuple[float, ...]
    size: int


class FieldShape(NamedTuple):
    """What a network needs to know of a field: its number of ids, and whether neighbouring ids mean nearly the same."""

    name: str
    size: int
    is_ordered: bool


@dataclass(frozen=True, slots=True)
class FieldCounts:
    """How often each value (text) or each rounded number (quantile) stands in training rows; sums over parts."""

    texts: Mapping[str, Counter[str]]
    numbers: Mapping[str, Counter[int]]
    bigrams: Counter[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """The fields of a token row, in order, and the most frequent pairs of types (for the order features)."""

    fields: tuple[Field, ...]
    bigrams: tuple[tuple[str, str], ...]

    @property
    def field_sizes(self) -> tuple[int, ...]:
        """Return the number of ids of each field [F]."""
        return tuple(field.size for field in self.fields)

    @property
    def field_shapes(self) -> tuple[FieldShape, ...]:
        """Return the shape of each field [F]; buckets of numbers and of times are ordered, texts are not."""
        return tuple(FieldShape(field.name, field.size, field.kind in ORDERED_KINDS) for field in self.fields)

    @property
    def types(self) -> tuple[str, ...]:
        """Return the known event types, most frequent first."""
        return tuple(str(value) for value in self.fields[0].values)

    def to_json(self) -> str:
        """Return JSON text that `vocabulary_from_json` reads back as an equal vocabulary."""
        fields = [{"name": f.name, "kind": f.kind, "values": f.values, "size": f.size} for f in self.fields]
        return json.dumps({"fields": fields, "bigrams": self.bigrams}, ensure_ascii=False, indent=1)


def token_columns(enriched: Enriched, risk: Risk) -> dict[str, tuple[Kind, Column]]:
    """Return the fields of a token row as plain columns [N], by name and in order; -1 or NaN means none."""
    events = enriched.events
    columns: dict[str, tuple[Kind, Column]] = {"type": ("text", events.type)}
    columns |= {name: ("text", column) for name, column in events.categorical.items()}
    if enriched.amount_log_N is not None and enriched.past_mean_N is not None and enriched.past_max_N is not None:
        columns["amount"] = ("quantile", enriched.amount_log_N)
        columns["amount_over_mean"] = ("quantile", enriched.amount_log_N - enriched.past_mean_N)
        columns["amount_over_max"] = ("quantile", enriched.amount_log_N - enriched.past_max_N)
        columns["amount_deviation"] = ("quantile", amount_deviation(enriched))
    columns |= {name: ("quantile", column) for name, column in events.numeric.items()}
    columns["session_start"] = ("small", enriched.session_opens_N.astype(np.int8))
    columns |= {f"first_seen:{name}": ("small", column) for name, column in enriched.first_seen.items()}
    if events.has_clock:
        columns["gap"] = ("octave", enriched.gap_us_N)
        columns["since_session"] = ("octave", enriched.since_session_us_N)
        columns["hour"] = ("small", enriched.hour_N)
        for k, name in enumerate(enriched.spec.key_types):
            columns[f"since:{name}"] = ("octave", enriched.since_key_us_NK[:, k])
            columns[f"pause:{name}"] = ("octave", enriched.pause_us_NK[:, k])
    for name, risk_NR in risk.items():
        columns |= {f"{field}:{name}": _risk_column(field, risk_NR) for field in _RISK_FIELDS}
    return columns


def amount_deviation(enriched: Enriched) -> FloatArray:
    """Return float64 [N]: how many of the user's own spreads an amount lies above their mean, NaN = none yet."""
    amount_N, mean_N, spread_N = enriched.amount_log_N, enriched.past_mean_N, enriched.past_spread_N
    if amount_N is None or mean_N is None or spread_N is None:
        return np.full(len(enriched.events), np.nan)
    return (amount_N - mean_N) / np.maximum(spread_N, _SMALLEST_SPREAD)


def _risk_column(name: str, risk_NR: FloatArray) -> tuple[Kind, Column]:
    """Return one risk as a field: shares in sixteenths, else octaves of the count, or of the hours where in days."""
    risk_N = risk_NR[:, RISK_NAMES.index(name)]
    if "share" in name:
        return "share", np.where(np.isnan(risk_N), -1.0, np.ceil(risk_N * (_N_SHARES - 1))).astype(np.int16)
    whole_N = np.rint(risk_N * (24 if "days" in name else 1))
    return "octave", np.where(np.isnan(whole_N), -1.0, whole_N * _TENTH_SECOND_US).astype(np.int64)


def count_fields(enriched: Enriched, risk: Risk, trains_N: BoolArray) -> FieldCounts:
    """Return the counts of the rows where trains_N is True."""
    texts: dict[str, Counter[str]] = {}
    numbers: dict[str, Counter[int]] = {}
    for name, (kind, column) in token_columns(enriched, risk).items():
        if isinstance(column, Text):
            codes = column.codes_N[trains_N & (column.codes_N >= 0)]
            counts = np.bincount(codes, minlength=len(column.values))
            texts[name] = Counter({str(column.values[c]): int(counts[c]) for c in np.flatnonzero(counts)})
        elif kind == "quantile":
            numbers[name] = _rounded(column[trains_N].astype(np.float64))
    codes_N, first_N = enriched.events.type.codes_N.astype(np.int64), enriched.events.first_of_user()
    n_types = len(enriched.events.type.values)
    pairs_N = np.zeros(len(codes_N), dtype=np.int64)
    pairs_N[1:] = codes_N[:-1] * n_types + codes_N[1:]
    pairs, counts = np.unique(pairs_N[trains_N & ~first_N], return_counts=True)
    values = enriched.events.type.values
    bigrams = {
        (str(values[p // n_types]), str(values[p % n_types])): int(c) for p, c in zip(pairs, counts, strict=True)
    }
    return FieldCounts(texts, numbers, Counter(bigrams))


def merge_counts(parts: list[FieldCounts]) -> FieldCounts:
    """Return the sums of the counts of all parts."""
    texts: dict[str, Counter[str]] = {name: Counter() for name in parts[0].texts}
    numbers: dict[str, Counter[int]] = {name: Counter() for name in parts[0].numbers}
    bigrams: Counter[tuple[str, str]] = Counter()
    for part in parts:
        for name, counts in part.texts.items():
            texts[name].update(counts)
        for name, rounded in part.numbers.items():
            numbers[name].update(rounded)
        bigrams.update(part.bigrams)
    return FieldCounts(texts, numbers, bigrams)


def fit_vocabulary(enriched: Enriched, risk: Risk, counts: FieldCounts) -> Vocabulary:
    """Return the vocabulary of the counted rows; `enriched` gives the names and kinds of the fields, no value."""
    fields: list[Field] = []
    for name, (kind, _) in token_columns(enriched, risk).items():
        if kind == "text":
            ranked = sorted(counts.texts[name].items(), key=lambda pair: (-pair[1], pair[0]))[:MAX_VALUES]
            fields.append(Field(name, kind, tuple(value for value, _ in ranked), FIRST_ID + len(ranked)))
        elif kind == "quantile":
            edges = _edges(counts.numbers[name])
            fields.append(Field(name, kind, edges, FIRST_ID + len(edges) + 1))
        else:
            fields.append(Field(name, kind, (), FIRST_ID + _SIZES[kind]))
    ranked_pairs = sorted(counts.bigrams.items(), key=lambda pair: (-pair[1], pair[0]))[:N_BIGRAMS]
    return Vocabulary(tuple(fields), tuple(pair for pair, _ in ranked_pairs))


def encode(enriched: Enriched, risk: Risk, vocabulary: Vocabulary) -> TokenArray:
    """Return tokens_NF int16 [N, F]: the ids of every field of every event.

    Raises BundleError when the vocabulary was fitted with other fields than the events have.
    """
    columns = token_columns(enriched, risk)
    names = tuple(field.name for field in vocabulary.fields)
    if tuple(columns) != names:
        raise BundleError(f"vocabulary.json: made for the fields {list(names)}, but the log gives {list(columns)}")
    tokens_NF = np.empty((len(enriched.events), len(names)), dtype=np.int16)
    for f, field in enumerate(vocabulary.fields):
        tokens_NF[:, f] = encode_column(columns[field.name][1], field)
        if enriched.is_unknown_N is not None and not is_of_time(field.name):
            tokens_NF[enriched.is_unknown_N, f] = UNKNOWN_ID
    return tokens_NF


def is_of_time(name: str) -> bool:
    """Return True for a field that says when an event was, not what it was."""
    return name in _TIME_FIELDS or name.startswith(("since:", "pause:"))


def encode_column(column: Column, field: Field) -> npt.NDArray[np.int16]:
    """Return the ids int16 [N] of one field."""
    if isinstance(column, Text):
        id_of = {value: FIRST_ID + place for place, value in enumerate(field.values)}
        ids = [id_of.get(value, UNKNOWN_ID) for value in column.values.tolist()]
        return np.array([*ids, NONE_ID], dtype=np.int16)[column.codes_N]
    if field.kind == "quantile":
        ids_N = np.searchsorted(np.array(field.values, dtype=np.float64), column, side="right") + FIRST_ID
        return np.where(np.isnan(column.astype(np.float64)), NONE_ID, ids_N).astype(np.int16)
    if field.kind == "octave":
        return half_octave(column.astype(np.int64)).astype(np.int16)
    return (column.astype(np.int16) + FIRST_ID).astype(np.int16)  # small, share: -1 falls on NONE_ID


def half_octave(time_us_N: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Return the bucket id of each time: two buckets an octave of 1 + time in tenths of a second, -1 = NONE_ID.

    Read off the bits of the float64: its exponent and the first bit of its mantissa, so an octave is split at 1.5.
    """
    tenths_N = 1.0 + np.maximum(time_us_N, 0) / _TENTH_SECOND_US
    bucket_N = (tenths_N.view(np.int64) >> 51) - _FIRST_OCTAVE
    return np.where(time_us_N < 0, NONE_ID, FIRST_ID + bucket_N)


_FIRST_OCTAVE = int(np.array(1.0).view(np.int64) >> 51)
_LONGEST_US = 7_258_118_400 * 10**6  # 1970 to the end of 2199
_N_OCTAVES = int((np.array(1.0 + _LONGEST_US / _TENTH_SECOND_US).view(np.int64) >> 51) - _FIRST_OCTAVE) + 1
_SIZES: Mapping[Kind, int] = {"small": 24, "share": _N_SHARES, "octave": _N_OCTAVES}


def _rounded(numbers: FloatArray) -> Counter[int]:
    known = numbers[~np.isnan(numbers)] + 0.0  # -0.0 becomes 0.0
    bits = known.view(np.int64)
    # The bits of negative floats run backwards; this makes their order the order of the numbers.
    ordered = np.where(bits < 0, np.int64(-(2**63)) - bits, bits)
    keys, counts = np.unique(ordered >> _QUANTILE_BITS, return_counts=True)
    return Counter(dict(zip(keys.tolist(), counts.tolist(), strict=True)))


def _edges(rounded: Counter[int]) -> tuple[float, ...]:
    if not rounded:
        return ()
    keys = np.array(sorted(rounded), dtype=np.int64)
    counts = [rounded[key] for key in keys.tolist()]
    total: IntArray = np.cumsum(np.array(counts, dtype=np.int64))
    tail = [0.5**k for k in range(6, 13)]
    even = [k / N_QUANTILES for k in range(1, N_QUANTILES)]
    shares = np.array(sorted([*even, *tail, *(1 - share for share in tail)]))
    wanted = float(total[-1]) * shares
    chosen = np.unique(np.minimum(np.searchsorted(total, wanted, side="left") + 1, len(keys) - 1))
    ordered = keys[chosen] << _QUANTILE_BITS
    bits = np.where(ordered < 0, np.int64(-(2**63)) - ordered, ordered)
    edges: FloatArray = np.unique(bits.view(np.float64))
    return tuple(edges.tolist())


def vocabulary_from_json(text: str) -> Vocabulary:
    """Return the vocabulary of `to_json`; raise BundleError for anything else."""
    try:
        tree = json.loads(text)
        fields = tuple(Field(f["name"], f["kind"], tuple(f["values"]), int(f["size"])) for f in tree["fields"])
        vocabulary = Vocabulary(fields, tuple((str(a), str(b)) for a, b in tree["bigrams"]))
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise BundleError(f"vocabulary.json: cannot be read ({error!r}); expected fields and bigrams") from None
    if not fields or fields[0].name != "type":
        raise BundleError("vocabulary.json: the first field must be 'type'")
    for field in fields:
        if field.kind in ("text", "quantile") and field.size != FIRST_ID + len(field.values) + (
            field.kind == "quantile"
        ):
            raise BundleError(
                f"vocabulary.json: field {field.name!r} has {len(field.values)} values, size {field.size}"
            )
    return vocabulary
