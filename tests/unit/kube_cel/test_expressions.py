"""The language and its libraries, as a table of expressions and values."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sampan.kube import cel
from sampan.kube.cel.values import Optional, UInt

SELF: dict[str, Any] = {
    "name": "web",
    "replicas": 3,
    "ratio": 1,
    "tags": ["a", "b"],
    "labels": {"app": "x", "tier-one": "y"},
    "items": [{"name": "p", "port": 80}, {"name": "q", "port": 443}],
    "namespace": "ns",
    "nothing": None,
}


def value(expression: str, **bindings: Any) -> Any:
    bindings = bindings or {"self": SELF}
    return cel.compile(expression, dict.fromkeys(bindings, cel.DYN)).evaluate(bindings)


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("1 + 2 * 3 - 4 / 2", 5),
        ("-7 / 2", -3),
        ("-7 % 3", -1),
        ("7.0 / 2.0", 3.5),
        ("1u + 2u", 3),
        ("0x1F", 31),
        ("1 == 1.0 && 1u == 1", True),
        ("dyn(1) == true", False),
        ("'a' + \"b\" + r'\\n'", "ab\\n"),
        ("'''x\ny'''", "x\ny"),
        ("b'abc' == bytes('abc')", True),
        ("'\\u00e9\\x41\\101'", "éAA"),
        ("true ? 1 : 2", 1),
        ("false && (1 / 0 == 1)", False),
        ("(1 / 0 == 1) && false", False),
        ("(1 / 0 == 1) || true", True),
        ("!true || !!true", True),
        ("[1, 2, 3][1]", 2),
        ("{'a': 1, 'b': 2}['b']", 2),
        ("{'a': 1}.a", 1),
        ("'a' in ['a'] && 'k' in {'k': 1} && !(3 in [1, 2])", True),
        ("has(self.name) && !has(self.missing)", True),
        ("self.nothing == null", True),
        ("size(self.tags) == 2 && self.name.size() == 3", True),
        ("self.items.all(i, i.port > 10)", True),
        ("self.items.exists(i, i.name == 'q')", True),
        ("self.items.exists_one(i, i.port < 100)", True),
        ("self.items.map(i, i.name)", ["p", "q"]),
        ("self.items.map(i, i.port > 100, i.name)", ["q"]),
        ("self.items.filter(i, i.port > 100)[0].name", "q"),
        ("self.labels.all(k, self.labels[k] != '')", True),
        ("self.labels.exists(k, v, k == 'app' && v == 'x')", True),
        ("[1, 2].all(i, v, v == i + 1)", True),
        ("[1, 2, 3].transformList(i, v, i > 0, v * 10)", [20, 30]),
        ("{'a': 1}.transformMap(k, v, v + 1)", {"a": 2}),
        ("{'a': 1}.transformMapEntry(k, v, {string(v): k})", {"1": "a"}),
        ("[0, 1].exists(x, 1 / x == 1)", True),
        ("self.?name.orValue('x')", "web"),
        ("self.?missing.orValue('x')", "x"),
        ("self.?missing.deeper.hasValue()", False),
        ("self.labels[?'app'].value()", "x"),
        ("self.tags[?7].hasValue()", False),
        ("[?self.?missing, 1]", [1]),
        ("{?'a': self.?missing, 'b': 1}", {"b": 1}),
        ("optional.of(1).optMap(x, x + 1).orValue(0)", 2),
        ("optional.none().or(optional.of(2)).value()", 2),
        ("optional.ofNonZeroValue('').hasValue()", False),
        ("cel.bind(x, 2, x * x)", 4),
        ("self.`tier`", None),
        ("type(1) == int && type('') == string && type([]) == list && type(1u) == uint", True),
        ("int('42') + int(3.9) + int(2u)", 47),
        ("string(1.5) + string(2.0) + string(true)", "1.52true"),
        ("double('1.5') + 1.0", 2.5),
        ("duration('1h30m') == duration('90m')", True),
        ("duration('1h').getMinutes()", 60),
        ("timestamp('2024-02-29T12:00:00Z').getDayOfYear()", 59),
        ("timestamp('2024-01-01T00:00:00Z') + duration('24h') == timestamp('2024-01-02T00:00:00Z')", True),
        ("timestamp('2024-01-01T00:00:00Z').getHours('+02:00')", 2),
        ("timestamp('2024-06-01T00:00:00Z').getHours('Europe/Paris')", 2),
        ("string(timestamp('2024-01-01T00:00:00.5Z')) + string(duration('1500ms'))", "2024-01-01T00:00:00.5Z1.5s"),
        ("'hello'.charAt(1)", "e"),
        ("'hello'.indexOf('l') + 'hello'.lastIndexOf('l')", 5),
        ("'HeLLo'.lowerAscii() + 'é'.upperAscii()", "helloé"),
        ("'a-b-c'.replace('-', '+', 1)", "a+b-c"),
        ("'a,b,c'.split(',', 2)", ["a", "b,c"]),
        ("['x', 'y'].join('-')", "x-y"),
        ("'hello'.substring(1, 3)", "el"),
        ("'  x '.trim()", "x"),
        ("'%s is %d, %.2f, %x %s'.format(['a', 3, 1.5, 255, [1, 'b']])", "a is 3, 1.50, ff [1, b]"),
        ("'abc123'.find('[0-9]+')", "123"),
        ("'a1b2c3'.findAll('[0-9]', 2)", ["1", "2"]),
        ("'abc'.matches('^a.c$')", True),
        ("[1, 2, 2].isSorted() && ![2, 1].isSorted()", True),
        ("[3, 1, 2].min() + [3, 1, 2].max() + [1, 2].sum()", 7),
        ("['a', 'b'].indexOf('b')", 1),
        ("[[1], [2, [3]]].flatten()", [1, 2, [3]]),
        ("[1, 1, 2].distinct().size()", 2),
        ("[2, 1].sort()", [1, 2]),
        ("self.items.sortBy(i, -i.port)[0].name", "q"),
        ("lists.range(3)", [0, 1, 2]),
        ("sets.contains([1, 2, 3], [2]) && sets.equivalent([1, 2], [2, 1, 1]) && sets.intersects([1], [1, 2])", True),
        ("url('https://u@example.com:80/p?q=1').getHost()", "example.com:80"),
        ("url('https://[::1]:80/').getHostname()", "::1"),
        ("url('https://a/p?k=v&k=w').getQuery()['k']", ["v", "w"]),
        ("isURL('../x') || isURL('') || isURL('http://#%b') || isURL('/a%2') || isURL(':x')", False),
        ("isURL('/a/b') && isURL('mailto:x') && isURL('http://a:80/x?y#z')", True),
        ("url('http://[::1]:80/').getPort() + url('http://h/').getPort() + url('HTTP://h/p?q').getScheme()", "80http"),
        ("ip('192.168.0.1').family() == 4 && isIP('::1') && !isIP('1.2.3')", True),
        ("ip('127.0.0.1').isLoopback() && !ip.isCanonical('2001:DB8::1')", True),
        ("cidr('10.0.0.0/8').containsIP('10.1.2.3') && cidr('10.0.0.0/8').containsCIDR('10.1.0.0/16')", True),
        ("string(cidr('10.1.2.3/8').masked())", "10.0.0.0/8"),
        ("quantity('1Gi').isGreaterThan(quantity('1G')) && isQuantity('100m') && !isQuantity('1 G')", True),
        ("quantity('1.5k').add(quantity('500')).asInteger()", 2000),
        ("quantity('100m').asApproximateFloat()", 0.1),
        ("quantity('200M').compareTo(quantity('0.2G'))", 0),
        ("semver('1.10.0').isGreaterThan(semver('1.9.9')) && semver('1.0.0-rc.1').isLessThan(semver('1.0.0'))", True),
        ("format.dns1123Label().validate('ok').hasValue()", False),
        ("format.named('dns1123Label').value().validate('Bad').hasValue()", True),
        ("format.named('nope').hasValue()", False),
        ("self.__namespace__ == 'ns' && self.labels.tier__dash__one == 'y'", True),
        ("// a comment\n 1 // more", 1),
    ],
)
def test_values(expression: str, expected: Any) -> None:
    if expression == "self.`tier`":
        with pytest.raises(cel.CelError, match="no such key: tier"):
            value(expression)
        return
    result = value(expression)
    assert result == expected
    assert isinstance(result, bool) == isinstance(expected, bool)


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        ("1 / 0", "division by zero"),
        ("9223372036854775807 + 1", "integer overflow"),
        ("self.missing", "no such key: missing"),
        ("self.tags[5]", "index out of bounds: 5"),
        ("self.name + self.replicas", "no such overload: string \\+ int"),
        ("self.name ? 1 : 2", "expected bool, found string"),
        ("self.name.split(self.replicas)", "no such overload: split\\(string, int\\)"),
        ("duration('1 hour')", "type conversion error from 'string' to 'google.protobuf.Duration'"),
        ("int('x')", "type conversion error from 'string' to 'int'"),
        ("url('http://%zz')", "invalid character in host name"),
        ("'x'.matches(self.name + '(')", "error parsing regexp"),
        ("[0].all(x, 1 / x == 1)", "division by zero"),
        ("optional.none().value()", "dereference"),
        ("{'a': 1, 'a': 2}", "repeated key"),
        ("quantity('abc')", "quantities must match"),
    ],
)
def test_evaluation_errors(expression: str, message: str) -> None:
    with pytest.raises(cel.CelError, match=message):
        value(expression)


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        ("nope", "ERROR: <input>:1:1: undeclared reference to 'nope' (in container '')\n | nope\n | ^"),
        (
            "1 + 'a'",
            "ERROR: <input>:1:3: found no matching overload for '_+_' applied to '(int, string)'\n | 1 + 'a'\n | ..^",
        ),
        ("self.x +", "Syntax error: mismatched input '<EOF>'"),
        ("self.all(1, true)", "undeclared reference to 'all'"),
        ("has(self)", "invalid argument to has() macro"),
        ("'a'.frob()", "undeclared reference to 'frob'"),
        ("'a'.split(1)", "found no matching overload for 'split' applied to 'string.(int)'"),
        ("if == 1", "reserved identifier: if"),
        ("'abc", "token recognition error"),
        ("1 && true", "expected type 'bool' but found 'int'"),
        ("'a' < 1", "found no matching overload for '_<_'"),
        ("'a'[0]", "found no matching overload for '_[_]'"),
        ("1.all(x, true)", "cannot be range of a comprehension"),
        ("a ==== b", "mismatched input"),
        ("(" * 5000, "recursion limit"),
        ("!" * 50 + "x" + ".a" * 5000, "recursion limit"),
        ("9223372036854775808", "invalid int literal"),
        ("#", "token recognition error"),
    ],
)
def test_compile_errors(expression: str, message: str) -> None:
    with pytest.raises(cel.CompileError) as caught:
        cel.compile(expression, {"self": cel.DYN})
    assert message in str(caught.value)


SCHEMA = {
    "type": "object",
    "properties": {
        "ratio": {"type": "number"},
        "count": {"type": "integer"},
        "since": {"type": "string", "format": "date-time"},
        "wait": {"type": "string", "format": "duration"},
        "blob": {"type": "string", "format": "byte"},
        "times": {"type": "array", "items": {"type": "string", "format": "date-time"}},
        "set": {"type": "array", "items": {"type": "string"}, "x-kubernetes-list-type": "set"},
        "namespace": {"type": "string"},
        "a-b": {"type": "string"},
        "port": {"x-kubernetes-int-or-string": True},
        "map": {"type": "object", "additionalProperties": {"type": "integer"}},
    },
}


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("self.ratio / 2.0 == 0.5", True),
        ("self.since < timestamp('2025-01-01T00:00:00Z')", True),
        ("self.wait + duration('30m') == duration('2h')", True),
        ("self.blob == b'hi'", True),
        ("self.times.all(t, t.getFullYear() == 2024)", True),
        ("self.times[0].getMonth() == 0", True),
        ("self.set == ['b', 'a']", False),
        ("self.set == oldSelf.set", True),
        ("(self.set + oldSelf.set).size() == 2", True),
        ("self.__namespace__ + self.a__dash__b", "nx"),
        ("type(self.port) == int ? self.port > 0 : self.port == 'http'", True),
        ("self.map.all(k, self.map[k] < 5)", True),
        ("!has(self.metadata)", None),
    ],
)
def test_typed_reading(expression: str, expected: Any) -> None:
    kind = cel.of_schema(SCHEMA)
    self = {
        "ratio": 1,
        "since": "2024-01-01T00:00:00Z",
        "wait": "1h30m",
        "blob": "aGk=",
        "times": ["2024-01-01T00:00:00Z"],
        "set": ["a", "b"],
        "namespace": "n",
        "a-b": "x",
        "port": 80,
        "map": {"one": 1},
    }
    old = {**self, "set": ["b", "a"]}
    variables = {"self": kind, "oldSelf": kind}
    if expected is None:
        with pytest.raises(cel.CompileError, match="undefined field 'metadata'"):
            cel.compile(expression, variables)
        return
    assert cel.compile(expression, variables).evaluate({"self": self, "oldSelf": old}) == expected


def test_the_variables_an_expression_reads_are_known() -> None:
    program = cel.compile(
        "self.x == oldSelf.x && [1].all(other, other > 0)", {"self": cel.DYN, "oldSelf": cel.DYN, "other": cel.BOOL}
    )
    assert program.variables == {"self", "oldSelf"}


def test_lazy_records_compute_what_is_read() -> None:
    read: list[str] = []

    def compute(name: str) -> Callable[[], int]:
        def computed() -> int:
            read.append(name)
            return 7

        return computed

    program = cel.compile("variables.a + variables.a", {"variables": cel.DYN})
    assert program.evaluate({"variables": cel.Lazy({"a": compute("a"), "b": compute("b")})}) == 14
    assert read == ["a"]


def test_an_evaluation_has_a_budget() -> None:
    items = list(range(2000))
    program = cel.compile("self.all(a, self.all(b, a != -1 && b != -1))", {"self": cel.DYN})
    with pytest.raises(cel.BudgetError):
        program.evaluate({"self": items})
    with pytest.raises(cel.BudgetError):
        cel.compile("self.all(a, a >= 0)", {"self": cel.DYN}).evaluate({"self": items}, cel.Budget(100))


def test_embedders_add_functions_and_types() -> None:
    class Shout:
        cel_type = "example.Shout"

        def __init__(self, text: str) -> None:
            self.text = text

    functions = [
        cel.overload("shout(string) -> example.Shout", Shout),
        cel.overload("<example.Shout>.loud() -> string", lambda shout: shout.text.upper()),
    ]
    assert cel.compile("shout('a').loud()", {}, functions).evaluate({}) == "A"
    with pytest.raises(cel.CompileError):
        cel.compile("'a'.loud()", {}, functions)


json = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.floats(allow_nan=False, width=16) | st.text("ab", max_size=2),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("ab", max_size=2), inner, max_size=3),
    max_leaves=8,
)


@given(json, json)
def test_equality_is_symmetric_and_reflexive(a: Any, b: Any) -> None:
    assert value("a == a", a=a)
    assert value("a == b", a=a, b=b) == value("b == a", a=a, b=b)


@given(st.text("()[]{}.?:,'\"\\ab1+-*/%<>=!&|`u_ \n", max_size=30))
def test_any_text_compiles_or_is_a_compile_error(text: str) -> None:
    try:
        program = cel.compile(text, {"a": cel.DYN, "b": cel.DYN})
    except cel.CompileError:
        return
    try:
        program.evaluate({"a": {"b": [1]}, "b": "x"})
    except cel.CelError:
        return


def test_results_are_plain_values() -> None:
    assert type(value("1u")) is UInt
    assert isinstance(value("optional.of(1)"), Optional)
