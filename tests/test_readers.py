"""Files -> rows: ids stay as written, formats agree, a bad row costs only itself, a bad file is named."""

from __future__ import annotations

import csv
import gzip
import io
import json
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fraud.columns import declared_columns
from fraud.csv_rows import csv_rows
from fraud.errors import ConfigError, DataError
from fraud.json_rows import json_rows
from fraud.quarantine import Quarantine
from fraud.readers import log_files, read_labels, read_log
from tests.raw_logs import COLUMNS, CONFIG, Row, config_of, csv_text, event, read, rows_of, write

ODD_IDS = [
    "007",
    "7",
    "1e5",
    "NA",
    "null",
    "nan",
    "None",
    " x ",
    "TRUE",
    "=1+1",
    "0x10",
    "-",
    "😀",
    "\ufeffu",
    "1,5",
    'a"b',
]
FORMATS = ("log.csv", "log.csv.gz", "log.jsonl", "log.ndjson.gz", "log.parquet")
# tmp_path is shared by the examples of one test: each writes its files anew.
file_laws = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40)


@pytest.mark.parametrize("name", FORMATS)
def test_ids_are_text_as_written(tmp_path: Path, name: str) -> None:
    rows = [event(i, user_id=text, type=text, channel=text) for i, text in enumerate(ODD_IDS)]
    got = read(write(tmp_path / name, rows))
    assert len(got.quarantine) == 0
    assert got.table["user"].to_pylist() == ODD_IDS
    assert got.table["type"].to_pylist() == ODD_IDS
    assert got.table["categorical:channel"].to_pylist() == ODD_IDS
    assert set(got.events.users) == set(ODD_IDS)


texts = st.text(st.characters(exclude_categories=["Cc", "Cs"]), min_size=1, max_size=4).filter(str.strip)
amounts = st.none() | st.floats(0, 1e12) | st.integers(0, 10**12)
times = st.datetimes(datetime(1970, 1, 1), datetime(2199, 12, 31))


@st.composite
def logs(draw: st.DrawFn) -> list[Row]:
    """Good rows with awkward text, unique event ids."""
    n_rows = draw(st.integers(1, 8))
    return [
        {
            "event_id": f"e{i}",
            "user_id": draw(texts),
            "ts": draw(times).isoformat() + "Z",
            "type": draw(texts),
            "amount": draw(amounts),
            "channel": draw(st.none() | texts),
        }
        for i in range(n_rows)
    ]


@given(logs())
@file_laws
def test_every_format_of_a_log_gives_the_same_events(tmp_path: Path, rows: list[Row]) -> None:
    read_rows = []
    for name in FORMATS:
        got = read(write(tmp_path / name, [{**row, "amount": row["amount"] and float(row["amount"])} for row in rows]))
        assert got.refused == []
        read_rows.append(rows_of(got.events))
    assert all(other == read_rows[0] for other in read_rows[1:])
    assert len(read_rows[0]) == len(rows)


@given(logs(), st.integers(0, 8))
@file_laws
def test_the_order_of_files_does_not_matter(tmp_path: Path, rows: list[Row], cut: int) -> None:
    parts = [part for part in (rows[:cut], rows[cut:]) if part]
    files = [write(tmp_path / f"{i}.jsonl", part) for i, part in enumerate(parts)]
    assert rows_of(read(files).events) == rows_of(read(files[::-1]).events)


cells = st.text(st.sampled_from('a",\n\r é\t0\ufeff'), max_size=4) | st.sampled_from(["", '"', '""', "\r\n", "\n"])


def pieces(content: bytes, sizes: list[int]) -> Iterator[bytes]:
    """Yield the content cut into pieces of the given sizes, the rest whole."""
    for size in sizes:
        yield content[:size]
        content = content[size:]
    yield content


def cells_read(blocks: Iterator[bytes], delimiter: str = ",") -> tuple[list[tuple[str, ...]], Quarantine]:
    """Return the cells of two declared columns, a and c, of the rows that are no malformed ones."""
    declared = declared_columns(config_of('[log]\nuser = "a"\ntime = "c"\ntype = ""\n'))
    quarantine = Quarantine()
    rows: list[tuple[str, ...]] = []
    for raw in csv_rows(blocks, declared, quarantine, source="f", delimiter=delimiter):
        rows += zip(*(raw.cells[name].text.to_pylist() for name in ("a", "c")), strict=True)  # type: ignore[union-attr]
    assert quarantine.n_rows_read == len(rows) + len(quarantine)
    return rows, quarantine


def quoted(cell: str) -> str:
    """Return the cell as RFC 4180 writes it, in quotes only where it needs them."""
    return '"' + cell.replace('"', '""') + '"' if set(cell) & set('",\r\n') else cell


@given(st.lists(st.tuples(cells, cells, cells)), st.sampled_from(["\n", "\r\n"]), st.lists(st.integers(1, 20)))
def test_a_csv_is_rfc_4180_however_it_is_cut_into_blocks(
    rows: list[tuple[str, str, str]], line_end: str, sizes: list[int]
) -> None:
    lines = ["a,b,c", *(",".join(map(quoted, row)) for row in rows)]
    got, quarantine = cells_read(pieces(line_end.join(lines).encode(), sizes))
    assert len(quarantine) == 0
    assert got == [(row[0], row[2]) for row in rows]


bad_rows = st.sampled_from(
    [
        "x",
        "1,2",
        "1,2,3\r4,5,6",
        "1,2,3,4",
        'a"b,2,3',
        '"a"b,2,3',
        "a\0,2,3",
        "a\rb,2,3",
        "\ud800,2,3",
        '"a\nb",2',
        '"a\nb",2,"c\nd",4',
    ]
)
good_rows = st.sampled_from(["1,2,3", '"a\nb",2,"c\n\nd"', '"x""y",,', "é,,😀", ",,", '"",2,"a,b"'])


line_ends = st.sampled_from(["\n", "\n\n", "\r\n\n", "\r\n"])


@given(st.lists(st.tuples(st.booleans(), good_rows, bad_rows)), line_ends, st.lists(st.integers(1, 20)))
def test_a_malformed_row_costs_only_itself(rows: list[tuple[bool, str, str]], line_end: str, sizes: list[int]) -> None:
    lines = [good if is_good else bad for is_good, good, bad in rows]
    content = line_end.join(["a,b,c", *lines]).encode("utf-8", "surrogatepass")
    got, quarantine = cells_read(pieces(content, sizes))
    expected = [next(csv.reader(io.StringIO(good, newline=""))) for is_good, good, _ in rows if is_good]
    assert got == [(row[0], row[2]) for row in expected]
    assert quarantine.table()["row"].to_pylist() == [i for i, (is_good, _, _) in enumerate(rows) if not is_good]


@given(st.binary(max_size=12), st.integers(0, 400), st.integers(0, 12), st.lists(st.integers(1, 200), max_size=3))
@settings(max_examples=200)
def test_damage_to_a_csv_is_refused_or_costs_rows_but_never_loses_one(
    noise: bytes, at: int, n_replaced: int, sizes: list[int]
) -> None:
    content = csv_text([event(i, channel="a,b" if i % 2 else None) for i in range(9)]).encode()
    damaged = content[:at] + noise + content[at + n_replaced :]
    config, quarantine = config_of(), Quarantine()
    try:
        chunks = list(csv_rows(pieces(damaged, sizes), declared_columns(config), quarantine, source="f", delimiter=","))
    except DataError:
        return
    n_good = sum(len(chunk.rows_N) for chunk in chunks)
    assert quarantine.n_rows_read == n_good + len(quarantine)
    refused = set(quarantine.table()["row"].to_pylist())
    kept = {row for chunk in chunks for row in chunk.rows_N.tolist()}
    assert kept | refused == set(range(quarantine.n_rows_read))
    # A line that the damage did not reach, and that no open quote can have swallowed, is read.
    if b'"' not in noise and content.count(b'"', at, at + n_replaced) == 0:
        whole = [line for line in content.split(b"\n")[1:-1] if line in damaged.split(b"\n")]
        assert n_good >= len(whole)


def test_a_byte_order_mark_after_the_header_is_text() -> None:
    for third in (b"3", b'"3"'):
        assert cells_read(iter([b"a,b,c\n\xef\xbb\xbf1,2," + third]))[0] == [("\ufeff1", "3")]


def test_a_stray_quote_does_not_swallow_the_next_rows() -> None:
    got, quarantine = cells_read(iter([b'a,b,c\n1,2,3\n"x,2,3\n4,5,6\n7,8,9\ny"z,2,3\n']))
    assert got == [("1", "3"), ("4", "6"), ("7", "9")]
    assert quarantine.table()["row"].to_pylist() == [1, 4]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("1,2", "wrong_cell_count"),
        ('a"b,2,3', "malformed_quote"),
        ('"a"b,2,3', "malformed_quote"),
        ("a\0,2,3", "nul_byte"),
        ("a\rb,2,3", "lone_cr"),
        ("a,2,3\rb,2,3", "lone_cr"),
        ("\udcff,2,3", "invalid_utf8"),
        ("x" * 1_000_001 + ",2,3", "row_too_long"),
        ("x" * 3_000_000 + ",2,3", "row_too_long"),
        ('"' + "x\n" * 1_500_000 + '",2,3', "row_too_long"),
    ],
)
def test_a_malformed_row_says_why(line: str, reason: str) -> None:
    content = f"a,b,c\n1,2,3\n{line}\n4,5,6\n".encode("utf-8", "surrogateescape")
    for size in (1 << 18, 8 << 20):
        got, quarantine = cells_read(content[at : at + size] for at in range(0, len(content), size))
        assert got == [("1", "3"), ("4", "6")]
        assert [(row["row"], row["column"], row["reason"]) for row in quarantine.table().to_pylist()] == [
            (1, "", reason)
        ]
        assert len(quarantine.table()["value"][0].as_py()) <= 200


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "empty"),
        (b"\n", "first line is blank"),
        (b"\xef\xbb\xbf", "first line is blank"),
        ("user_id,ts,type".encode("utf-16"), "UTF-16"),
        ("user_id,ts,type".encode("utf-16-le"), "UTF-16"),
        (gzip.compress(b"user_id,ts,type\n", mtime=0), "gzip"),
        (b"user_id,ts,type\xff\n", "not UTF-8"),
        (b"user_id;ts;type\n", "log.delimiter"),
        (b"user_id,ts,kind\n", "'type'"),
        (b"user_id,ts,type,ts\n", "'ts' stands twice"),
        (b"user_id,ts,type\ru,2026-11-20T10:00:00Z,login\r", "CR alone"),
        (b'user_id,ts,"type\n', "RFC 4180"),
        (b'user_id,ts,type\nu,"2026-11-20T10:00:00Z,login\nv,2026-11-20T10:00:00Z,login\n', "data row 0 opens a quote"),
        (b'user_id,ts,type\nu,"' + b"x\n" * 600_000, "data row 0 opens a quote"),
        (b"user_id,ts,type," + b"x" * 1_000_000 + b"\n", "longer than 1 MB"),
        (",".join(["user_id", "ts", "type", *map(str, range(10_000))]).encode(), "at most 10000"),
    ],
)
def test_a_csv_nobody_can_read_is_named(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "log.csv"
    path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        read(path, config_of("[log]\n"))
    assert str(caught.value).startswith(f"{path}: ")
    assert words in str(caught.value)


def test_a_header_alone_is_a_log_of_no_rows(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_text(",".join(COLUMNS))
    got = read(path)
    assert len(got.events) == got.quarantine.n_rows_read == 0
    assert got.table.schema.names == ["row", "user", "time_us", "type", "event_id", "amount", "categorical:channel"]


def test_another_delimiter_is_read_when_declared(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_text("user_id\tts\ttype\nu,1\t2026-11-20T10:00:00Z\tlogin\n")
    assert list(read(path, config_of('[log]\ndelimiter = "\\t"\n')).events.users) == ["u,1"]
    with pytest.raises(ConfigError, match=r"log\.delimiter"):
        read(path, config_of("[log]\ndelimiter = '\"'\n"))


@pytest.mark.parametrize(
    ("line", "column", "reason"),
    [
        ('{"user_id": "u', "", "not_json"),
        ('{"user_id": "u"},', "", "not_json"),
        ('{"user_id": "u"} {"user_id": "u"}', "", "not_json"),
        ("[1, 2]", "", "not_an_object"),
        ('"text"', "", "not_an_object"),
        ("[" * 100_000, "", "not_json"),
        ('{"user_id": "' + "x" * 1_000_001 + '"}', "", "row_too_long"),
        ('{"user_id": "' + "x" * 3_000_000 + '"}', "", "row_too_long"),
        ('{"user_id": "u\udcff"}', "", "invalid_utf8"),
        ('{"user_id": "u", "user_id": "v"}', "", "duplicate_key"),
        ('{"user_id": "u", "user\\u005fid": "v"}', "", "duplicate_key"),
        ('{"user_id": "\\ud800"}', "user_id", "lone_surrogate"),
        ('{"user_id": "a\\u0000"}', "user_id", "control_character"),
        ('{"user_id": 1.0}', "user_id", "wrong_type"),
        ('{"user_id": true}', "user_id", "wrong_type"),
        ('{"user_id": ["u"]}', "user_id", "wrong_type"),
        ('{"user_id": null}', "user_id", "empty"),
        ("{}", "user_id", "empty"),
        ('{"user_id": "u", "ts": 1795168800}', "ts", "no_time_unit"),
        (
            '{"user_id": "u", "ts": "2026-11-20T10:00:00Z", "type": "t", "event_id": "e", "amount": "5"}',
            "amount",
            "wrong_type",
        ),
        (
            '{"user_id": "u", "ts": "2026-11-20T10:00:00Z", "type": "t", "event_id": "e", "amount": NaN}',
            "amount",
            "not_finite",
        ),
        (
            '{"user_id": "u", "ts": "2026-11-20T10:00:00Z", "type": "t", "event_id": "e", "amount": 1e999}',
            "amount",
            "not_finite",
        ),
        (
            '{"user_id": "u", "ts": "2026-11-20T10:00:00Z", "type": "t", "event_id": "e", "amount": 1'
            + "0" * 400
            + "}",
            "amount",
            "not_finite",
        ),
    ],
)
def test_a_bad_line_of_json_costs_only_itself(tmp_path: Path, line: str, column: str, reason: str) -> None:
    path = tmp_path / "log.jsonl"
    lines = [json.dumps(event(0)), "", line, json.dumps(event(1))]
    path.write_bytes("\n".join(lines).encode("utf-8", "surrogateescape"))
    got = read(path)
    assert got.refused == [(1, column, reason)]
    assert len(got.events) == 2
    assert got.table["row"].to_pylist() == [0, 2]


@given(st.binary(max_size=12), st.integers(0, 1300), st.integers(0, 12), st.lists(st.integers(1, 300), max_size=3))
@settings(max_examples=200)
def test_damage_to_json_lines_reads_as_line_by_line(noise: bytes, at: int, n_replaced: int, sizes: list[int]) -> None:
    content = "".join(json.dumps(event(i)) + "\n" for i in range(9)).encode()
    damaged = content[:at] + noise + content[at + n_replaced :]
    quarantine = Quarantine()
    declared = declared_columns(config_of())
    try:
        chunks = list(json_rows(pieces(damaged, sizes), declared, quarantine, source="f"))
    except DataError:
        return
    expected: list[dict[str, object]] = []
    n_lines = 0
    for line in damaged.split(b"\n"):
        n_lines += bool(line.strip())
        try:
            pairs = json.loads(line.decode("utf-8"), object_pairs_hook=list)
            found = json.loads(line)
        except (ValueError, UnicodeDecodeError):
            continue
        keys = [key for key, _ in pairs] if isinstance(found, dict) else []
        if isinstance(found, dict) and not any(keys.count(name) > 1 for name in COLUMNS):
            expected.append(found)
    objects = [cell for chunk in chunks for cell in chunk.cells["user_id"].objects]  # type: ignore[union-attr]
    assert objects == [found.get("user_id") for found in expected]
    assert quarantine.n_rows_read == n_lines == len(expected) + len(quarantine)


@pytest.mark.parametrize("lines", ['{"a": [{}\n{}]}\n{}, {}', '{"a": [{}\n{}]}, {}', '{"a": {}\n,"b": {}}'])
def test_lines_that_only_together_are_json_are_bad_lines_each(tmp_path: Path, lines: str) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text(lines)
    assert read(path).refused == [(i, "", "not_json") for i in range(lines.count("\n") + 1)]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "empty"),
        (b'[{"user_id": "u"}]', "JSON array"),
        (b'[\n{"user_id": "u"}\n]', "JSON array"),
        (b'{\n "user_id": "u"\n}\n', "several lines"),
        ('{"user_id": "u"}'.encode("utf-16"), "UTF-16"),
    ],
)
def test_a_json_file_that_is_not_json_lines_is_named(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "log.jsonl"
    path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        read(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert words in str(caught.value)


def test_a_cut_gzip_gives_its_rows_chunk_by_chunk_and_then_an_error(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl.gz"
    content = gzip.compress("".join(json.dumps(event(i)) + "\n" for i in range(90_000)).encode(), 1)
    path.write_bytes(content[: len(content) - 20])
    chunks = read_log([path], config_of(), Quarantine())
    assert 0 < len(next(chunks)) < 80_000
    with pytest.raises(DataError, match=r"log\.jsonl\.gz: cannot be read to its end"):
        list(chunks)
    path.write_bytes(b"user_id,ts,type\n")
    with pytest.raises(DataError, match=r"log\.jsonl\.gz: cannot be read to its end"):
        read(path)


@given(st.integers(0, 10_000), st.integers(1, 255))
@file_laws
def test_a_changed_byte_of_a_parquet_file_never_changes_a_row(tmp_path: Path, at: int, change: int) -> None:
    rows = [event(i, amount=float(i)) for i in range(20)]
    path = write(tmp_path / "good.parquet", rows)
    expected = read(path).table
    content = bytearray(path.read_bytes())
    # Pages carry checksums; the footer, which does not, is left alone.
    footer = int.from_bytes(content[-8:-4], "little") + 8
    content[4 + at % (len(content) - footer - 4)] ^= change
    damaged = tmp_path / "damaged.parquet"
    damaged.write_bytes(content)
    try:
        got = read(damaged).table
    except DataError:
        return
    assert got.equals(expected)


def test_a_parquet_file_is_read_in_chunks_of_bounded_size(tmp_path: Path) -> None:
    path = tmp_path / "log.parquet"
    n_rows = 2_500
    columns = {name: pa.repeat(pa.scalar(text), n_rows) for name, text in event(0).items() if text is not None}
    wide = pa.array([str(i) + "x" * 20_000 for i in range(n_rows)])
    pq.write_table(pa.table({**columns, "event_id": wide, "amount": pa.nulls(n_rows)}), path, use_dictionary=False)
    sizes = [len(chunk) for chunk in read_log([path], config_of('[log]\nevent_id = "event_id"\n'), Quarantine())]
    assert len(sizes) > 1
    assert sum(sizes) + n_rows == n_rows  # ids this long are refused, but never held all at once


def test_rows_of_several_files_count_on_and_map_back(tmp_path: Path) -> None:
    first = write(tmp_path / "a.csv", [event(0), event(1, ts="soon"), event(2)])
    second = write(tmp_path / "b.parquet", [event(3), event(0, amount=5.0)])
    got = read([first, second])
    assert got.table["row"].to_pylist() == [0, 2, 3, 4]
    refused = got.quarantine.table().select(["file", "row", "column", "value", "reason"]).to_pylist()
    assert [tuple(row.values()) for row in refused] == [
        (str(first), 0, "event_id", "e0", "conflicting_duplicate"),
        (str(first), 1, "ts", "soon", "bad_time"),
        (str(second), 1, "event_id", "e0", "conflicting_duplicate"),
    ]


def test_a_folder_and_a_glob_leave_out_what_is_no_log(tmp_path: Path) -> None:
    names = ["b.csv", "a.jsonl", "c.CSV.gz"]
    for name in [*names, ".hidden.csv", "_part.csv", "quarantine.parquet", "OUT.quarantine.parquet", "notes.txt"]:
        (tmp_path / name).write_text("x")
    (tmp_path / "folder.csv").mkdir()
    expected = [tmp_path / name for name in sorted(names)]
    assert log_files(".", tmp_path) == expected
    assert log_files("*", tmp_path) == expected
    assert log_files("_part.csv", tmp_path) == [tmp_path / "_part.csv"]
    assert log_files(str(tmp_path / "b.csv"), Path("/elsewhere")) == [tmp_path / "b.csv"]
    assert log_files(f"{tmp_path.name[:-1]}?/**/*.csv", tmp_path.parent) == [tmp_path / "b.csv"]
    with pytest.raises(DataError, match="no such file"):
        log_files("absent.csv", tmp_path)
    with pytest.raises(DataError, match=r"notes\.txt: unknown extension"):
        read(log_files("notes.txt", tmp_path))


def test_labels_of_a_table_are_read_by_the_same_rules(tmp_path: Path) -> None:
    rows = [
        {"event_id": "e0", "fraud": "1", "seen": "2026-11-20T10:00:00Z", "part": "train"},
        {"event_id": "e1", "fraud": "false", "seen": None, "part": None},
        {"event_id": None, "fraud": "1", "seen": None, "part": None},
        {"event_id": "e3", "fraud": "2", "seen": None, "part": None},
    ]
    write(tmp_path / "labels.csv", rows, ("event_id", "fraud", "seen", "part"))
    labels = '[labels]\npath = "labels.csv"\nkey = ["event_id"]\ncolumn = "fraud"\nknown_at = "seen"\n'
    config = config_of(CONFIG + labels + '[split]\nby = "column"\ncolumn = "part"\n', tmp_path)
    quarantine = Quarantine()
    table = read_labels(config, quarantine)
    assert table.to_pydict() == {
        "event_id": ["e0", "e1"],
        "label": [1, 0],
        "known_us": [1_795_168_800_000_000, None],
        "part": ["train", None],
    }
    assert quarantine.table()["reason"].to_pylist() == ["empty", "bad_label"]


def test_labels_in_the_log_are_read_with_it(tmp_path: Path) -> None:
    path = write(tmp_path / "log.jsonl", [event(0, fraud=True), event(1, fraud=None), event(2, fraud="yes")])
    got = read(path, config_of(CONFIG + '[labels]\ncolumn = "fraud"\n'))
    assert got.table["label"].to_pylist() == [1, None]
    assert got.refused == [(2, "fraud", "bad_label")]
