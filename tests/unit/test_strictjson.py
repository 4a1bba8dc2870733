"""JSON that would not arrive as it was meant is refused; the rest arrives exactly."""

from __future__ import annotations

import json
import math
from decimal import Decimal
from time import perf_counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kmsjwks.domain.errors import InvalidRequest, MalformedJson
from kmsjwks.domain.strictjson import MAX_DEPTH, dumps, loads

_TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
_SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(10**200), 10**200)
    | st.floats(allow_nan=False, allow_infinity=False)
    | _TEXT
)
_VALUES = st.recursive(
    _SCALARS, lambda inner: st.lists(inner) | st.dictionaries(_TEXT, inner), max_leaves=30
)


def _refused(data: bytes) -> str:
    with pytest.raises(MalformedJson) as caught:
        loads(data)
    assert isinstance(caught.value, InvalidRequest)
    message = str(caught.value)
    assert len(message) < 400
    message.encode()  # an error that holds a lone surrogate cannot be sent
    return message


@given(value=_VALUES)
def test_what_goes_out_comes_back_the_same(value: Any) -> None:
    again = loads(dumps(value))
    assert repr(again) == repr(value)  # tells 1 from 1.0 and True, and 0.0 from -0.0


@given(value=_VALUES)
def test_output_is_json_for_others(value: Any) -> None:
    assert json.loads(dumps(value)) == value


@given(value=_VALUES, indent=st.sampled_from([None, 1, 4]), ascii_only=st.booleans())
def test_whitespace_and_escapes_do_not_matter(
    value: Any, indent: int | None, ascii_only: bool
) -> None:
    text = json.dumps(value, indent=indent, ensure_ascii=ascii_only)
    assert repr(loads(text.encode())) == repr(value)


@given(digits=st.integers(17, 200), negative=st.booleans(), data=st.data())
def test_integers_of_up_to_200_digits_arrive_exactly(
    digits: int, negative: bool, data: st.DataObject
) -> None:
    number = data.draw(st.integers(10 ** (digits - 1), 10**digits - 1)) * (-1 if negative else 1)
    assert loads(str(number).encode()) == number
    assert dumps({"n": number}) == b'{"n":%d}' % number


@pytest.mark.parametrize("number", [2**53 - 1, 2**53, 2**53 + 1, 2**63, 2**64, -(2**63) - 1])
def test_integers_around_machine_limits_arrive_exactly(number: int) -> None:
    assert loads(str(number).encode()) == number
    assert dumps(number) == str(number).encode()


@pytest.mark.parametrize(
    "text",
    [
        '{"a":1,"a":1}',
        '{"a":1,"a":2}',
        r'{"a":1,"\u0061":2}',
        r'{"\u0061":1,"\u0061":2}',
        '{"é":1,"\\u00e9":2}',
        '{"":1,"":2}',
        r'{"😀":1,"\ud83d\ude00":2}',
        '{"x":[{"b":{"a":1,"a":2}}]}',
        '{"a":1,"b":2,"c":3,"a":4}',
    ],
)
def test_duplicate_names_are_refused(text: str) -> None:
    assert "twice" in _refused(text.encode())


def test_names_that_only_look_alike_are_kept_apart() -> None:
    assert loads('{"a":1,"A":2,"é":3,"e\u0301":4}'.encode()) == {
        "a": 1,
        "A": 2,
        "é": 3,
        "e\u0301": 4,
    }


@pytest.mark.parametrize("text", ["NaN", "Infinity", "-Infinity", "1e999", "-1e999", "1E400"])
@pytest.mark.parametrize("frame", ["%s", "[%s]", '{"a":%s}', '{"a":[{"b":%s}]}'])
def test_numbers_that_are_not_finite_are_refused(text: str, frame: str) -> None:
    message = _refused((frame % text).encode())
    assert ("too large" if text[-1].isdigit() else text) in message


@pytest.mark.parametrize("text", ["73317331e999", "0.7331733173317331733173317331"])
def test_a_refused_number_is_not_repeated(text: str) -> None:
    """It may be a claim's value."""
    assert "7331" not in _refused(b'{"a":%s}' % text.encode())


@pytest.mark.parametrize(
    "text",
    [
        r'"\ud800"',
        r'"\udfff"',
        r'"a\ud83d"',
        r'"\ude00\ud83d"',
        r'{"\ud800":1}',
        r'{"a":"\udc00"}',
        r'{"a":[["x",{"b":"\ud800x"}]]}',
        r'{"a":{"x\udc00":null}}',
        r'{"\ud800":1,"\ud800":2}',
    ],
)
def test_lone_surrogates_are_refused(text: str) -> None:
    _refused(text.encode())


def test_surrogate_pairs_are_one_character() -> None:
    assert loads(rb'{"\ud83d\ude00":"\uD83D\uDE00"}') == {"😀": "😀"}


@pytest.mark.parametrize("opening", [b"[", b'{"a":'])
def test_depth(opening: bytes) -> None:
    closing = b"]" if opening == b"[" else b"}"
    at_limit = opening * MAX_DEPTH + closing * MAX_DEPTH
    if opening == b"[":
        loads(at_limit)
    else:
        loads(at_limit.replace(b'"a":}', b'"a":1}', 1))
    deeper = opening * (MAX_DEPTH + 1) + b"1" + closing * (MAX_DEPTH + 1)
    assert str(MAX_DEPTH) in _refused(deeper)


def test_depth_is_32_and_siblings_do_not_add_to_it() -> None:
    assert MAX_DEPTH == 32
    assert len(loads(b"[" + b",".join([b"[]"] * 5000) + b"]")) == 5000


@pytest.mark.parametrize("opening", [b"[", b'{"a":', b'[{"a":'])
@pytest.mark.parametrize("depth", [900, 1_000, 10_000, 1_000_000])
def test_great_depth_is_refused_in_no_time(opening: bytes, depth: int) -> None:
    started = perf_counter()
    _refused(opening * depth)
    _refused(b"[" * depth + b"]" * depth)
    assert perf_counter() - started < 2


@pytest.mark.parametrize("digits", [4_301, 5_000, 1_000_000])
@pytest.mark.parametrize("frame", [b"%s", b"-%s", b'{"exp":%s}'])
def test_integers_of_thousands_of_digits_are_refused_in_no_time(digits: int, frame: bytes) -> None:
    started = perf_counter()
    _refused(frame % (b"1" * digits))
    assert perf_counter() - started < 2


@pytest.mark.parametrize(
    "data",
    [
        b"\xff",
        b'"\xc3"',
        b'"\xc0\x80"',
        b'"\xed\xa0\x80"',
        b'"\xf4\x90\x80\x80"',
        '"é"'.encode("latin-1"),
        '{"a":1}'.encode("utf-16"),
        '{"a":1}'.encode("utf-16-le"),
        '{"a":1}'.encode("utf-32-be"),
        '\ufeff{"a":1}'.encode(),
    ],
)
def test_other_encodings_and_the_byte_order_mark_are_refused(data: bytes) -> None:
    _refused(data)


@pytest.mark.parametrize(
    "text",
    [
        *("", " ", "{", "}", "[1,]", '{"a":1,}', "{a:1}", "{'a':1}", '{"a" 1}', "[1 2]"),
        *('{"a":1} x', '{"a":1}{}', "1 2", "null,", '{"a":1}\0', "\0", "{}\u00a0", "\u00a0{}"),
        *("01", "-", "+1", "1.", ".5", "0x10", "1e", "True", "nul", "undefined", "1_000", "\u0661"),
        *('"', '"\\x"', '"\\u12"', '"\\u12g4"', '"\n"', '"\t"', '"\x00"', '"\x1f"', '{"\n":1}'),
        *("// c\n1", "/* c */1", "[,1]", "{,}"),
    ],
)
def test_what_rfc_8259_does_not_know_is_refused(text: str) -> None:
    _refused(text.encode())


def test_escaped_control_characters_are_text() -> None:
    assert loads(rb'"\u0000\n\t\u001f"') == "\0\n\t\x1f"
    assert loads(dumps("\0\x1f\u2028")) == "\0\x1f\u2028"


@pytest.mark.parametrize(
    "text",
    [
        "0.1000000000000000055511151231257827",
        "123456789012345678.0",
        "0.12345678901234567890",
        "9007199254740993.0",
        "1e-400",
        "3.141592653589793238",
        "1.7976931348623157e309",
        "-0.10000000000000001",
        "4.9e-325",
        "1e-99999999999999999999",
    ],
)
def test_floats_that_would_change_are_refused(text: str) -> None:
    _refused(text.encode())
    _refused(f'{{"a":[{text}]}}'.encode())


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("0.1", 0.1),
        ("-0.0", -0.0),
        ("1.0", 1.0),
        ("1.50", 1.5),
        ("1e5", 1e5),
        ("1E+5", 1e5),
        ("1e22", 1e22),
        ("1e23", 1e23),
        ("5e-324", 5e-324),
        ("1.7976931348623157e308", 1.7976931348623157e308),
        ("0.30000000000000004", 0.1 + 0.2),
        ("9007199254740992.0", 2.0**53),
    ],
)
def test_floats_that_do_not_change_are_kept(text: str, value: float) -> None:
    kept = loads(text.encode())
    assert (type(kept), repr(kept)) == (float, repr(value))


@given(
    text=st.from_regex(
        r"\A-?(0|[1-9][0-9]{0,25})(\.[0-9]{1,25})?([eE][+-]?[0-9]{1,3})?\Z", fullmatch=True
    ).filter(str.isascii)
)
def test_no_number_changes_its_value_on_the_way_through(text: str) -> None:
    try:
        value = loads(text.encode())
    except MalformedJson:
        assert any(mark in text for mark in ".eE")
        return
    assert math.isfinite(value)
    assert Decimal(dumps(value).decode()) == Decimal(text)


@given(data=st.binary(max_size=100))
def test_random_bytes_are_refused_or_json(data: bytes) -> None:
    try:
        value = loads(data)
    except MalformedJson:
        return
    assert json.loads(data) == value


@given(text=st.text(alphabet='{}[]",:\\u0dD8 aA1.e+-nulltrfs\n', max_size=40))
def test_almost_json_is_refused_or_json(text: str) -> None:
    try:
        value = loads(text.encode())
    except MalformedJson:
        return
    assert repr(loads(dumps(value))) == repr(value)


@pytest.mark.parametrize(
    "value",
    [
        *(math.nan, math.inf, -math.inf, "\ud800", {"\udc00": 1}, ["a", {"b": "x\ud83d"}]),
        [[math.nan]],
    ],
)
def test_what_json_cannot_carry_does_not_go_out(value: Any) -> None:
    with pytest.raises(MalformedJson):
        dumps(value)


def test_output_is_compact_utf8_in_the_order_given() -> None:
    value = {"b": 1, "a": ["é", True, None, 1.5]}
    assert dumps(value) == '{"b":1,"a":["é",true,null,1.5]}'.encode()


def test_the_message_says_where() -> None:
    assert "line 2, column 3" in _refused(b'{"a":1,\n  b}')


def test_the_message_is_short_whatever_was_sent() -> None:
    name = "x" * 100_000
    _refused(f'{{"{name}":1,"{name}":2}}'.encode())
    _refused(b"0." + b"1" * 100_000)
