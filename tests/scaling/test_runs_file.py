"""Other people's tables: columns found, numbers read, bad rows named by their lines."""

import json
import string
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose

from verim.errors import InputError
from verim.scaling.runs_file import RECOGNISED, Columns, read_runs


def written(tmp_path: Path, text: str, name: str = "runs.csv") -> Path:
    (tmp_path / name).write_text(text, encoding="utf-8")
    return tmp_path / name


@pytest.mark.parametrize(
    "header",
    ["N,D,L", "Params,Tokens,Loss", "n_params;tokens_seen;val loss", "Model Size\tTraining Tokens\tBits per byte"],
)
def test_columns_are_recognised_whatever_their_spelling(header: str, tmp_path: Path) -> None:
    delimiter = next(sign for sign in ";\t," if sign in header)
    rows = [header, *(delimiter.join(row) for row in (("1e6", "2e7", "3.1"), ("2e6", "4e7", "2.9")))]
    table = read_runs(written(tmp_path, "\n".join(rows)))
    assert_allclose((table.N, table.D, table.L), ([1e6, 2e6], [2e7, 4e7], [3.1, 2.9]))
    assert_allclose(table.C, 6 * table.N * table.D)
    assert table.lines == (2, 3) and table.notes == ()


@pytest.mark.parametrize(("role", "name"), [(role, name) for role, names in RECOGNISED.items() for name in names])
def test_every_known_name_is_read_as_what_it_is(role: str, name: str, tmp_path: Path) -> None:
    names = {"parameters": "N", "tokens": "D", "loss": "L", "flops": "C"} | {role: name}
    row = {"parameters": 1e6, "tokens": 2e7, "loss": 3.0, "flops": 1e14}
    path = written(tmp_path, json.dumps({names[key]: value for key, value in row.items()}), "runs.jsonl")
    assert getattr(read_runs(path).columns, role) == name


def test_json_lines_and_extra_columns(tmp_path: Path) -> None:
    rows = [{"name": "a", "params": 7_000_000, "tokens": 1e9, "loss": 3.5, "tags": ["x"]}, {}]
    rows[1] = {"name": "b", "loss": 3.2, "params": "14M", "tokens": "2B", "seed": None}
    text = "\n" + "\n\n".join(json.dumps(row) for row in rows) + "\n"
    for name in ("runs.jsonl", "runs.txt"):
        table = read_runs(written(tmp_path, text, name))
        assert_allclose((table.N, table.D, table.L), ([7e6, 14e6], [1e9, 2e9], [3.5, 3.2]))
        assert table.lines == (2, 4)


def test_numbers_as_people_write_them(tmp_path: Path) -> None:
    text = 'N,D,L\n70B,1.4T,2.0\n"7,000,000","1_000_000",3e0\n 7k , .5M ,+2.5\n1E6,2.E6,2\n'
    table = read_runs(written(tmp_path, text))
    assert_allclose(table.N, [70e9, 7e6, 7e3, 1e6])
    assert_allclose(table.D, [1.4e12, 1e6, 5e5, 2e6])
    assert_allclose(table.L, [2.0, 3.0, 2.5, 2.0])


def test_tokens_follow_from_flops(tmp_path: Path) -> None:
    table = read_runs(written(tmp_path, "Model Size,Training FLOP,loss\n1e9,1.2e20,2.5\n"))
    assert_allclose(table.D, [2e10])
    assert_allclose(table.C, [1.2e20])
    assert "D = C / (6 N) from 'Training FLOP'" in table.notes[0]


def test_given_flops_stay_as_they_are_given(tmp_path: Path) -> None:
    table = read_runs(written(tmp_path, "N,D,L,flops\n1e9,2e10,2.5,1.5e20\n"))
    assert_allclose(table.C, [1.5e20])


def test_a_choice_between_columns_is_said_and_can_be_changed(tmp_path: Path) -> None:
    path = written(tmp_path, "total,non_embedding,tokens,train_loss,val_loss\n3e6,2e6,1e8,2.9,3.0\n")
    table = read_runs(path)
    assert (table.N[0], table.L[0]) == (2e6, 3.0)
    assert table.notes == (
        "parameters read from 'non_embedding', not from 'total' (--parameters)",
        "loss read from 'val_loss', not from 'train_loss' (--loss)",
    )
    chosen = read_runs(path, Columns(parameters="total", loss="train_loss"))
    assert (chosen.N[0], chosen.L[0], chosen.notes) == (3e6, 2.9, ())


BAD = """N,D,L
1e6,1e8,3.0
1e6,x,3.0
1e6,1e8
-1,1e8,3.0
1e6,1e8,nan
2e6,1e8,2.9
"""


def test_bad_rows_are_named_by_their_lines(tmp_path: Path) -> None:
    path = written(tmp_path, BAD)
    with pytest.raises(InputError) as caught:
        read_runs(path)
    said = str(caught.value)
    assert "line 3: D is 'x', expected a finite number above 0" in said
    assert "line 4: 2 fields, where the header has 3" in said
    assert "line 5: N is '-1'" in said and "and 1 more" in said and "--skip-bad" in said
    table = read_runs(path, skip_bad=True)
    assert table.lines == (2, 7) and table.notes == ("left out, unreadable: line 3, 4, 5, 6",)


def test_bad_json_lines_are_named(tmp_path: Path) -> None:
    good = json.dumps({"N": 1e6, "D": 1e8, "L": 3.0})
    text = "\n".join([good, "{broken", "[1, 2]", json.dumps({"N": True, "D": 1e8, "L": 3.0}), json.dumps({"N": 1e6})])
    path = written(tmp_path, text, "runs.jsonl")
    with pytest.raises(InputError, match=r"line 2: no JSON; line 3: list, expected an object.*line 4: N is True"):
        read_runs(path)
    assert len(read_runs(path, skip_bad=True).N) == 1


@pytest.mark.parametrize(
    ("text", "columns", "message"),
    [
        ("", Columns(), "is empty"),
        ("N,D\n1,2\n", Columns(), "no column is known for loss among 'N', 'D': say --loss NAME"),
        ("a,b\n1,2\n", Columns(), "for parameters, tokens, loss among 'a', 'b'"),
        ("N,D,L\n1,2,3\n", Columns(loss="x"), "--loss 'x': .* has no such column, but 'N', 'D', 'L'"),
        ("N,D,L,N\n1,2,3,4\n", Columns(), "names 'N' twice"),
        ("N,D,L\n", Columns(), "holds no run"),
    ],
)
def test_files_that_are_no_such_table(text: str, columns: Columns, message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        read_runs(written(tmp_path, text), columns)


def test_files_that_are_not_there_or_no_text(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_runs(tmp_path / "none.csv")
    (tmp_path / "binary.csv").write_bytes(b"\xff\xfe\x00N,D")
    with pytest.raises(InputError, match="no UTF-8 text"):
        read_runs(tmp_path / "binary.csv")


@given(st.text(alphabet=string.printable, max_size=200) | st.text(alphabet='NDL,;"\n {}:1e.-', max_size=60))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=150)
def test_any_text_is_runs_or_an_input_error(tmp_path: Path, text: str) -> None:
    path = written(tmp_path, text)
    try:
        table = read_runs(path, skip_bad=True)
    except InputError:
        return
    assert (table.N > 0).all() and (table.D > 0).all() and (table.L > 0).all()
