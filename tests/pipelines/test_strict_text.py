"""YAML and JSON: every trap is refused with its line, and nothing in a file runs."""

import json
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from pipelines.config_errors import ConfigError
from pipelines.strict_json import parse_json
from pipelines.strict_text import MAX_BYTES, decode
from pipelines.strict_yaml import parse_scalar, parse_yaml

SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=10
)
TEXTS = st.recursive(
    st.text(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=10
)
FINITE = VALUES.filter(lambda value: "Infinity" not in json.dumps(value))


def refused(text: str, parse: Any = parse_yaml) -> str:
    with pytest.raises(ConfigError) as caught:
        parse(text, name="F")
    return str(caught.value)


def test_yaml_means_what_version_1_2_says() -> None:
    text = """
a: 1e-3
b: no
c: on
d: true
e: 1:30
f: 2024-01-01
g: '012'
h: 0x10
i: 0o17
j: ~
k:
l: 1_000
m: -1.5E+3
n: "x"
1: y
no: [1, {z: 2.}]
"""
    assert parse_yaml(text, name="F").values == {
        "a": 0.001,
        "b": "no",
        "c": "on",
        "d": True,
        "e": "1:30",
        "f": "2024-01-01",
        "g": "012",
        "h": 16,
        "i": 15,
        "j": None,
        "k": None,
        "l": "1_000",
        "m": -1500.0,
        "n": "x",
        "1": "y",
        "no": [1, {"z": 2.0}],
    }


def test_every_key_has_its_line() -> None:
    yaml_lines = parse_yaml("a: 1\nb:\n  c: 2\n  d:\n  - x: 1\n  - x: 2\n", name="F").lines
    assert yaml_lines == {"a": 1, "b": 2, "b.c": 3, "b.d": 4, "b.d.0.x": 5, "b.d.1.x": 6}
    text = '{"a": 1,\n"b": {"c": "{,\\"x\\":",\n"d": [{"x": 1},\n{"x": 2}]}}'
    json_lines = parse_json(text, name="F").lines
    assert json_lines == {"a": 1, "b": 2, "b.c": 2, "b.d": 3, "b.d.0.x": 3, "b.d.1.x": 4}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: 2\na: 3\n", "F:3: `a` is given twice, first in line 1; keep one"),
        ("x:\n  a: 1\n  'a': 3\n", "F:3: `x.a` is given twice, first in line 2; keep one"),
        ("a: !!python/object/apply:os.system [x]", "F:1: tag tag:yaml.org,2002:python/object/appl"),
        ("a: !!binary aGk=", "F:1: tag tag:yaml.org,2002:binary; remove it"),
        ("a: &x 1\nb: *x", "F:2: alias *x; write the value out"),
        ("a: &x [1]\n", "F:1: anchor &x; remove it"),
        ("a:\n\tb: 1\n", "F:2: a tab; indent with spaces"),
        ("\ta: 1\n", "F:1: a tab; indent with spaces"),
        ("a: 012", "F:1: 012 may mean octal: write 12, or '012' for text"),
        ("a: -007", "F:1: -007 may mean octal: write 7"),
        ("a: .inf", "F:1: .inf is not a finite number"),
        ("a: 1e999", "F:1: 1e999 is too large"),
        ("a: 1\n---\nb: 2", "F:2: a second document"),
        ("a: [1,\nb: 2", "F:2: "),
        ("a: b: c", "F:1: a ':' where no key can stand; check the indentation"),
        ("a: \x07", "F:1: control character"),
        ("? [a]\n: 3\n", "F:1: a key that is no text"),
        ("- a\n", 'F:1: got ["a"], expected keys such as algo: ppo'),
        ("3", "F:1: got 3, expected keys such as algo: ppo"),
        ("", "F:1: the file is empty"),
        ("# only a comment\n", "F:1: the file is empty"),
        ("a: " + "[" * 40 + "]" * 40, "F:1: nested more than 32 deep"),
        ("[" * 100_000, "F:1: nested more than 32 deep"),
    ],
)
def test_yaml_traps_are_refused_with_their_line(text: str, message: str) -> None:
    assert message in refused(text)


def test_an_alias_bomb_is_refused_without_being_expanded() -> None:
    rows = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    rows += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 30)]
    assert "F:2: alias *a0" in refused("\n".join(rows))


def test_yaml_says_all_that_is_wrong_at_once() -> None:
    assert len(refused("a: 012\na: !x 2\nb: *c\n").splitlines()) == 4


def test_no_tag_runs_code(tmp_path: Any) -> None:
    target = tmp_path / "ran"
    refused(f"a: !!python/object/apply:pathlib.Path.touch [{target}]")
    refused(f'a: !!python/object/apply:os.system ["touch {target}"]')
    assert not target.exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"a": 1,\n"a": 2}', "F:2: `a` is given twice, first in line 1; keep one"),
        ('{"a": 1, "a": 1}', "F:1: `a` is given twice"),
        ('{"x": [{"a": 1},\n{"a": 1, "\\u0061": 2}]}', "F:2: `x.1.a` is given twice"),
        ('{"x": "NaN",\n"a": NaN}', "F:2: NaN is not a finite number"),
        ('{"a":\n-Infinity}', "F:2: -Infinity is not a finite number"),
        ('{"a": 1e999}', "F:1: 1e999 is too large"),
        ('{"a": ' + "9" * 5000 + "}", "F:1: 99999999999999999999... has 5000 digits"),
        ('{"a": 1,}', "F:1: "),
        ("{'a': 1}", "JSON wants double quotes around every key"),
        ("[1]", "F: got [1], expected an object"),
        ("", "F:1: Expecting value"),
        ('{"a": ' + "[" * 50 + "]" * 50 + "}", "nested more than 32 deep"),
        ("[" * 1_000_000, "nested more than 32 deep"),
    ],
)
def test_json_traps_are_refused_with_their_line(text: str, message: str) -> None:
    assert message in refused(text, parse_json)


def test_bytes_that_are_not_utf_8_are_refused_with_their_line() -> None:
    with pytest.raises(ConfigError, match=r"F:2: byte 0xe9 is not UTF-8; save the file as UTF-8"):
        decode("a: 1\nb: é\n".encode("latin-1"), name="F")
    with pytest.raises(ConfigError, match=r"F:1: byte 0xff is not UTF-8"):
        decode("a: 1".encode("utf-16"), name="F")
    assert decode("\ufeffa: é".encode(), name="F") == "a: é"


def test_more_than_a_mebibyte_is_refused() -> None:
    assert decode(b"x" * MAX_BYTES, name="F")
    with pytest.raises(ConfigError, match="F: more than 1 MiB"):
        decode(b"x" * (MAX_BYTES + 1), name="F")


@given(FINITE)
def test_json_reads_back_what_json_wrote(value: Any) -> None:
    assert parse_json(json.dumps({"k": value}, indent=1), name="F").values == {"k": value}


@given(TEXTS)
def test_yaml_reads_back_what_yaml_wrote(value: Any) -> None:
    # Quoted, since plain scalars mean other things in YAML 1.1, which yaml.dump writes.
    text = yaml.dump({"k": value}, default_style='"', width=10**6)
    assert parse_yaml(text, name="F").values == {"k": value}


@pytest.mark.parametrize("text", ["[1, 2", "{a: 1", "'x", "012", ".nan", "[*a]", "[!x 1]"])
def test_a_scalar_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        parse_scalar(text)
