"""From text to syntax tree: the lexer and the parser of the Common Expression Language.

The grammar is CEL's with optional syntax (``a.?b``, ``a[?k]``, ``[?x]``, ``{?k: v}``) and quoted field names. Macros are
plain calls here; the compiler expands them. Nesting is bounded, so hostile input cannot exhaust the stack.
"""

from __future__ import annotations

import re
from collections.abc import Container
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

from sampan.kube.cel.errors import CompileError
from sampan.kube.cel.values import UInt

LENGTH_LIMIT = 100_000
"""Characters of an expression at most."""
DEPTH_LIMIT = 100
"""Levels of nesting at most."""


@dataclass(frozen=True, slots=True)
class Literal:
    position: int
    value: Any


@dataclass(frozen=True, slots=True)
class Ident:
    position: int
    name: str


@dataclass(frozen=True, slots=True)
class Select:
    position: int
    operand: Node
    field: str
    optional: bool = False


@dataclass(frozen=True, slots=True)
class Index:
    position: int
    operand: Node
    key: Node
    optional: bool = False


@dataclass(frozen=True, slots=True)
class Call:
    """A function call; ``target`` is the receiver. Operators are calls of ``_+_``, ``!_``, ``_?_:_`` and so on."""

    position: int
    function: str
    target: Node | None
    args: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class ListNode:
    position: int
    items: tuple[tuple[bool, Node], ...]
    """Each with whether it is optional (``[?x]``)."""


@dataclass(frozen=True, slots=True)
class MapNode:
    position: int
    entries: tuple[tuple[bool, Node, Node], ...]


Node: TypeAlias = Literal | Ident | Select | Index | Call | ListNode | MapNode


def dotted(node: Node) -> str | None:
    """The name a chain of plain selections spells."""
    if isinstance(node, Ident):
        return node.name
    if isinstance(node, Select) and not node.optional:
        inner = dotted(node.operand)
        return f"{inner}.{node.field}" if inner is not None else None
    return None


def root_declared(node: Node, scope: Container[str]) -> bool:
    """Whether a chain of selections begins at a declared variable."""
    while isinstance(node, Select):
        node = node.operand
    return isinstance(node, Ident) and node.name in scope


def weight(node: Node) -> int:
    """How many nodes an expression has."""
    match node:
        case Select():
            return 1 + weight(node.operand)
        case Index():
            return 1 + weight(node.operand) + weight(node.key)
        case Call():
            return 1 + (weight(node.target) if node.target else 0) + sum(map(weight, node.args))
        case ListNode():
            return 1 + sum(weight(item) for _, item in node.items)
        case MapNode():
            return 1 + sum(weight(key) + weight(value) for _, key, value in node.entries)
        case _:
            return 1


class _Token(NamedTuple):
    kind: str
    value: Any
    position: int


_TOKEN = re.compile(
    r"""
    (?P<space>(?:\s|//[^\n]*)+)
  | (?P<text>[rRbB]{0,2}(?:\"\"\"|'''|"|'))
  | (?P<double>\d+\.\d+(?:[eE][+-]?\d+)?|\d+[eE][+-]?\d+|\.\d+(?:[eE][+-]?\d+)?)
  | (?P<int>(?:0[xX][0-9a-fA-F]+|\d+)[uU]?)
  | (?P<ident>[_a-zA-Z][_a-zA-Z0-9]*)
  | (?P<quoted>`[a-zA-Z0-9_.\-/ ]+`)
  | (?P<op>&&|\|\||[<>=!]=|[-+*/%<>!?:.,()\[\]{}])
    """,
    re.VERBOSE,
)
_ESCAPES = {"a": "\a", "b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "v": "\v"}
_RESERVED = frozenset(
    [
        "as",
        "break",
        "const",
        "continue",
        "else",
        "for",
        "function",
        "if",
        "import",
        "let",
        "loop",
        "package",
        "namespace",
        "return",
        "var",
        "void",
        "while",
    ]
)
_OPERATORS = {
    "||": (0, "_||_"),
    "&&": (1, "_&&_"),
    "==": (2, "_==_"),
    "!=": (2, "_!=_"),
    "<": (2, "_<_"),
    "<=": (2, "_<=_"),
    ">": (2, "_>_"),
    ">=": (2, "_>=_"),
    "in": (2, "@in"),
    "+": (3, "_+_"),
    "-": (3, "_-_"),
    "*": (4, "_*_"),
    "/": (4, "_/_"),
    "%": (4, "_%_"),
}
"""Binary operators: precedence level and function."""
_FLAT = frozenset({"_||_", "_&&_"})
"""Operators that take any number of operands in one call, so that long chains stay shallow."""


def parse(expression: str) -> Node:
    """The syntax tree of an expression.

    Raises:
        CompileError: it is not CEL, too long, or nested too deeply.
    """
    if len(expression) > LENGTH_LIMIT:
        raise CompileError(
            "", 0, f"expression code point size exceeds limit: size: {len(expression)}, limit {LENGTH_LIMIT}"
        )
    return _Parser(expression).whole()


class _Parser:
    def __init__(self, source: str) -> None:
        self._source = source
        self._tokens = self._lex()
        self._at = 0
        self._depth = 0

    # -- tokens

    def _fail(self, position: int, what: str) -> CompileError:
        return CompileError(self._source, position, f"Syntax error: {what}")

    def _lex(self) -> list[_Token]:
        source = self._source
        tokens: list[_Token] = []
        at = 0
        while at < len(source):
            match = _TOKEN.match(source, at)
            if match is None:
                raise self._fail(at, f"token recognition error at: '{source[at]}'")
            kind = match.lastgroup or ""
            text = match.group()
            if kind == "text":
                value, at = self._text(text, at)
                tokens.append(_Token("literal", value, match.start()))
                continue
            at = match.end()
            if kind == "space":
                continue
            if kind == "int":
                digits = text.rstrip("uU")
                number = int(digits, 16) if digits[:2] in ("0x", "0X") else int(digits)
                unsigned = digits != text
                if number > (2**64 - 1 if unsigned else 2**63):
                    raise self._fail(match.start(), "invalid int literal")
                tokens.append(_Token("literal", UInt(number) if unsigned else number, match.start()))
            elif kind == "double":
                tokens.append(_Token("literal", float(text), match.start()))
            elif kind == "ident" and text in ("true", "false", "null"):
                tokens.append(_Token("literal", {"true": True, "false": False, "null": None}[text], match.start()))
            elif kind == "ident" and text == "in":
                tokens.append(_Token("op", "in", match.start()))
            elif kind == "quoted":
                tokens.append(_Token("quoted", text[1:-1], match.start()))
            else:
                tokens.append(_Token(kind, text, match.start()))
        tokens.append(_Token("end", "<EOF>", len(source)))
        return tokens

    def _text(self, opening: str, at: int) -> tuple[str | bytes, int]:
        """A string or bytes literal that begins at ``at``, and where it ends."""
        prefix = opening.rstrip("\"'").lower()
        quote = opening[len(prefix) :]
        if len(set(prefix)) != len(prefix):
            raise self._fail(at, f"token recognition error at: '{opening}'")
        source = self._source
        raw, binary = "r" in prefix, "b" in prefix
        out: list[str] = []
        start = at
        at += len(opening)
        while not source.startswith(quote, at):
            if at >= len(source) or (len(quote) == 1 and source[at] == "\n"):
                raise self._fail(start, f"token recognition error at: '{source[start:at]}'")
            if source[at] == "\\" and not raw:
                piece, at = self._escape(at, binary)
                out.append(piece)
            elif binary:
                out.append(source[at].encode().decode("latin-1"))
                at += 1
            else:
                out.append(source[at])
                at += 1
        text = "".join(out)
        return (text.encode("latin-1") if binary else text), at + len(quote)

    def _escape(self, at: int, binary: bool) -> tuple[str, int]:
        source = self._source
        code = source[at + 1 : at + 2]
        if code in _ESCAPES:
            return _ESCAPES[code], at + 2
        if code and code in "\\'\"`?":
            return code, at + 2
        match = re.compile(r"[xX]([0-9a-fA-F]{2})|u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8})|([0-3][0-7]{2})").match(
            source, at + 1
        )
        if match is None or (binary and (match[2] or match[3])):
            raise self._fail(at, "invalid escape sequence")
        number = int(match[4], 8) if match[4] else int(match[1] or match[2] or match[3], 16)
        if number > 0x10FFFF or 0xD800 <= number <= 0xDFFF:
            raise self._fail(at, "invalid unicode code point")
        return chr(number), match.end()

    @property
    def _token(self) -> _Token:
        return self._tokens[self._at]

    def _is(self, op: str) -> bool:
        token = self._tokens[self._at]
        return token.kind == "op" and token.value == op

    def _take(self, op: str) -> bool:
        if self._is(op):
            self._at += 1
            return True
        return False

    def _expect(self, op: str) -> None:
        if not self._take(op):
            raise self._unexpected(f"'{op}'")

    def _unexpected(self, wanted: str) -> CompileError:
        token = self._token
        shown = (
            token.value if token.kind in ("op", "ident", "end") else self._source[token.position : token.position + 12]
        )
        return self._fail(token.position, f"mismatched input '{shown}' expecting {wanted}")

    # -- grammar

    def whole(self) -> Node:
        node = self._expression()
        if self._token.kind != "end":
            raise self._unexpected("<EOF>")
        return node

    def _expression(self) -> Node:
        self._depth += 1
        if self._depth > DEPTH_LIMIT:
            raise self._fail(self._token.position, f"expression recursion limit exceeded: {DEPTH_LIMIT}")
        node = self._binary(0)
        if self._is("?"):
            position = self._token.position
            self._at += 1
            yes = self._binary(0)
            self._expect(":")
            node = Call(position, "_?_:_", None, (node, yes, self._expression()))
        self._depth -= 1
        return node

    def _binary(self, level: int) -> Node:
        """Operators from this precedence level up, left-associative (precedence climbing)."""
        node = self._unary()
        chained = 0
        while (token := self._token).kind == "op" and (found := _OPERATORS.get(token.value)) and found[0] >= level:
            chained += 1
            if chained > 2 * DEPTH_LIMIT:
                raise self._fail(token.position, f"expression recursion limit exceeded: {DEPTH_LIMIT}")
            rank, function = found
            operands = [node]
            while self._take(token.value):
                operands.append(self._binary(rank + 1))
                if function not in _FLAT:
                    break
            node = Call(token.position, function, None, tuple(operands))
        return node

    def _unary(self) -> Node:
        token = self._token
        if token.kind != "op" or token.value not in ("!", "-"):
            return self._checked(self._member(self._primary()))
        count = 0
        while self._take(token.value):
            count += 1
        if token.value == "-" and count == 1 and self._token.kind == "literal":
            number = self._token.value
            if type(number) in (int, float):
                self._at += 1
                return self._checked(self._member(Literal(token.position, -number)))
        node = self._unary()
        return Call(token.position, "!_" if token.value == "!" else "-_", None, (node,)) if count % 2 else node

    def _checked(self, node: Node) -> Node:
        if isinstance(node, Literal) and type(node.value) is int and node.value == 2**63:
            raise self._fail(node.position, "invalid int literal")
        return node

    def _member(self, node: Node) -> Node:
        chained = 0
        while True:
            position = self._token.position
            chained += 1
            if chained > 2 * DEPTH_LIMIT:
                raise self._fail(position, f"expression recursion limit exceeded: {DEPTH_LIMIT}")
            if self._take("."):
                optional = self._take("?")
                token = self._token
                if token.kind not in ("ident", "quoted") and not (token.kind == "op" and token.value == "in"):
                    raise self._unexpected("IDENTIFIER")
                self._at += 1
                if not optional and token.kind == "ident" and self._is("("):
                    node = Call(token.position, token.value, node, self._arguments())
                else:
                    node = Select(position, node, token.value, optional)
            elif self._take("["):
                optional = self._take("?")
                key = self._expression()
                self._expect("]")
                node = Index(position, node, key, optional)
            else:
                return node

    def _arguments(self) -> tuple[Node, ...]:
        self._expect("(")
        args: list[Node] = []
        while not self._is(")"):
            args.append(self._expression())
            if not self._take(","):
                break
        self._expect(")")
        return tuple(args)

    def _primary(self) -> Node:
        self._take(".")
        token = self._token
        if token.kind == "literal":
            self._at += 1
            return Literal(token.position, token.value)
        if token.kind == "ident":
            self._at += 1
            if token.value in _RESERVED:
                raise self._fail(token.position, f"reserved identifier: {token.value}")
            if self._is("("):
                return Call(token.position, token.value, None, self._arguments())
            return Ident(token.position, token.value)
        if self._take("("):
            node = self._expression()
            self._expect(")")
            return node
        if self._take("["):
            items: list[tuple[bool, Node]] = []
            while not self._is("]"):
                items.append((self._take("?"), self._expression()))
                if not self._take(","):
                    break
            self._expect("]")
            return ListNode(token.position, tuple(items))
        if self._take("{"):
            entries: list[tuple[bool, Node, Node]] = []
            while not self._is("}"):
                optional = self._take("?")
                key = self._expression()
                self._expect(":")
                entries.append((optional, key, self._expression()))
                if not self._take(","):
                    break
            self._expect("}")
            return MapNode(token.position, tuple(entries))
        raise self._unexpected("{'[', '{', '(', '.', '-', '!', literal, IDENTIFIER}")
