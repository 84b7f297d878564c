"""From enriched events to integer fields: the vocabulary, fitted on training rows only, and `encode`.

An event becomes one row of F small integers, one for each field. In every field id 0 is padding, 1 is unknown (trained
by token dropout), 2 is "none" (a null, or no past yet), known values start at 3. Counts are sums over rows, so the
vocabulary of a log read in parts is the vocabulary of the whole. Fields of one kind are encoded together, some rows at
a time: a small input costs the number of calls, a large one what leaves the cache.
"""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from fraud.enrich import Enriched
from fraud.errors import BundleError
from fraud.events import BoolArray, FloatArray, IntArray, Text
from fraud.fields import (
    N_SHARES,
    TENTH_SECOND_US,
    Column,
    Kind,
    NumberColumn,
    Risk,
    event_columns,
    risk_columns,
    text_columns,
    token_columns,
)
from fraud.lookups import places

PADDING_ID, UNKNOWN_ID, NONE_ID, FIRST_ID = 0, 1, 2, 3
MAX_VALUES = 4096
_TIME_FIELDS = frozenset({"session_start", "gap", "since_session", "hour"})
# Even quantiles, and the tails: on the handbook's cards 22 % of the frauds are among the 0.2 % largest amounts; edges
# at 1/64 ... 1/4096 from either end took an LSTM's AP on the first fold from .54 to .64.
N_QUANTILES = 32
N_BIGRAMS = 64
_QUANTILE_BITS = 40  # of a float64: keeps 12 bits of mantissa, so a quantile is exact to 1 part in 4,096
_ROWS_TOGETHER = 8_192  # rows whose fields are encoded at once; above, it only fills the cache

TokenArray = npt.NDArray[np.int16]
ORDERED_KINDS: tuple[Kind, ...] = ("quantile", "octave", "share")


@dataclass(frozen=True, slots=True)
class Field:
    """One field: `values` are the known texts, most frequent first (text), or the edges between buckets (quantile).

    id_of, edges: the same, as `encode` reads them: made once, with the field.
    """

    name: str
    kind: Kind
    values: tuple[str, ...] | tuple[float, ...]
    size: int
    id_of: Mapping[str, int] = dataclasses.field(init=False, repr=False, compare=False)
    edges: FloatArray = dataclasses.field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Set what is made of the values."""
        texts, edges = (self.values if self.kind == kind else () for kind in ("text", "quantile"))
        object.__setattr__(self, "id_of", {str(value): FIRST_ID + place for place, value in enumerate(texts)})
        object.__setattr__(self, "edges", np.array(edges, dtype=np.float64))


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
    fields, texts = vocabulary.fields, text_columns(enriched.events)
    # Of all rows, so that a dictionary is read once.
    text_ids = {field.name: encode_column(texts[field.name], field) for field in fields if field.name in texts}
    tokens_NF = np.empty((len(enriched.events), len(fields)), dtype=np.int16)
    for first in range(0, max(len(tokens_NF), 1), _ROWS_TOGETHER):
        rows = slice(first, first + _ROWS_TOGETHER)
        columns = event_columns(enriched, rows) | risk_columns(risk, rows)
        if first == 0:
            _check_names(list(columns), fields)
        ids_FN = np.empty((len(fields), len(tokens_NF[rows])), dtype=np.int16)
        numbers: dict[int, NumberColumn] = {}
        for f, (name, (_, column)) in enumerate(columns.items()):
            if isinstance(column, Text):
                ids_FN[f] = text_ids[name][rows]
            else:
                numbers[f] = column
        ids_FN[list(numbers)] = _number_ids(list(numbers.values()), [fields[f] for f in numbers])
        tokens_NF[rows] = ids_FN.T
    if enriched.is_unknown_N is not None:
        is_hidden_F = np.array([not is_of_time(field.name) for field in fields])
        tokens_NF[np.ix_(enriched.is_unknown_N, is_hidden_F)] = UNKNOWN_ID
    return tokens_NF


def _check_names(found: list[str], fields: tuple[Field, ...]) -> None:
    if found != (names := [field.name for field in fields]):
        raise BundleError(f"vocabulary.json: made for the fields {names}, but the log gives {found}")


def is_of_time(name: str) -> bool:
    """Return True for a field that says when an event was, not what it was."""
    return name in _TIME_FIELDS or name.startswith(("since:", "pause:"))


def encode_column(column: Column, field: Field) -> npt.NDArray[np.int16]:
    """Return the ids int16 [N] of one field."""
    if isinstance(column, Text):
        return places(column, field.id_of, unknown=UNKNOWN_ID, null=NONE_ID)
    return _number_ids([column], [field])[0]


def _number_ids(columns: list[NumberColumn], fields: list[Field]) -> TokenArray:
    """Return the ids int16 [F, N] of fields that are no text, one call for all of a kind."""
    ids_FN = np.empty((len(fields), len(columns[0])), dtype=np.int16)
    places_of: dict[str, list[int]] = {}
    for f, field in enumerate(fields):
        places_of.setdefault(field.kind if field.kind in ("quantile", "octave") else "small", []).append(f)
    if quantiles := places_of.get("quantile"):
        numbers_QN = np.array([columns[f] for f in quantiles], dtype=np.float64)
        ids_QN = np.empty(numbers_QN.shape, dtype=np.int64)
        for q, f in enumerate(quantiles):
            ids_QN[q] = fields[f].edges.searchsorted(numbers_QN[q], side="right")
        ids_QN += FIRST_ID
        ids_QN[np.isnan(numbers_QN)] = NONE_ID
        ids_FN[quantiles] = ids_QN
    if octaves := places_of.get("octave"):
        ids_FN[octaves] = half_octave(np.array([columns[f] for f in octaves], dtype=np.int64))
    if others := places_of.get("small"):  # small, share: -1 falls on NONE_ID
        ids_FN[others] = np.array([columns[f] for f in others], dtype=np.int16) + FIRST_ID
    return ids_FN


def half_octave(time_us_N: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Return the bucket id of each time: two buckets an octave of 1 + time in tenths of a second, -1 = NONE_ID.

    Read off the bits of the float64: its exponent and the first bit of its mantissa, so an octave is split at 1.5.
    """
    tenths_N = np.maximum(time_us_N, 0) / TENTH_SECOND_US
    tenths_N += 1.0
    id_N = tenths_N.view(np.int64) >> 51
    id_N -= _FIRST_OCTAVE - FIRST_ID
    id_N[time_us_N < 0] = NONE_ID
    return id_N


_FIRST_OCTAVE = int(np.array(1.0).view(np.int64) >> 51)
_LONGEST_US = 7_258_118_400 * 10**6  # 1970 to the end of 2199
_N_OCTAVES = int((np.array(1.0 + _LONGEST_US / TENTH_SECOND_US).view(np.int64) >> 51) - _FIRST_OCTAVE) + 1
_SIZES: Mapping[Kind, int] = {"small": 24, "share": N_SHARES, "octave": _N_OCTAVES}


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
