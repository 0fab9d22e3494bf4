"""The wording of every error and notice, in one file to read from top to bottom.

`tests/golden/messages.txt` is taken from the source: the code, the class or topic, the message and
the advice, with placeholders as they stand there. `pytest --regolden` rewrites it, for review.
"""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path

from fitcompress import errors

PACKAGE = Path(errors.__file__).parent
GOLDEN = Path(__file__).parent / "golden" / "messages.txt"


def messages(tree: ast.AST) -> Iterator[str]:
    """An entry for each call in the tree that names its code: an error's, a notice's, or one of a
    function that makes them.
    """
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    for function in functions:
        local = defaultdict(list)
        for name, value in assignments(function):
            local[name].append(value)
        for node in ast.walk(function):
            if isinstance(node, ast.Call) and (entry := entry_of(node, local)):
                yield entry


def assignments(function: ast.FunctionDef) -> Iterator[tuple[str, ast.expr]]:
    for node in ast.walk(function):
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            yield node.targets[0].id, node.value


def entry_of(call: ast.Call, local: Mapping[str, list[ast.expr]]) -> str | None:
    given = {keyword.arg: keyword.value for keyword in call.keywords}
    message = given.get("message") or (call.args[0] if call.args else None)
    if message is None or not isinstance(given.get("code"), ast.Constant | ast.IfExp):
        return None
    name = getattr(call.func, "id", "") or getattr(call.func, "attr", "")
    texts = local.get(message.id, [message]) if isinstance(message, ast.Name) else [message]
    lines = [f"{text_of(given['code'])}  ({name})", *(f"    {text_of(text)}" for text in texts)]
    if advice := text_of(given["advice"]) if "advice" in given else "":
        lines.append(f"    -> {advice}")
    return "\n".join(lines)


def text_of(value: ast.expr) -> str:
    """The text of an expression; what is only known at run time stands in braces."""
    if isinstance(value, ast.FormattedValue):
        value = value.value
        if not isinstance(value, ast.IfExp):
            return braced(value)
    if isinstance(value, ast.Constant):
        return str(value.value)
    if isinstance(value, ast.JoinedStr):
        return "".join(map(text_of, value.values))
    if isinstance(value, ast.BinOp) and isinstance(value.op, ast.Add):
        return text_of(value.left) + text_of(value.right)
    if isinstance(value, ast.IfExp):
        return f"{{{text_of(value.body)} | {text_of(value.orelse)}}}"
    return braced(value)


def braced(value: ast.expr) -> str:
    return f"{{{' '.join(ast.unparse(value).split())}}}"


def catalogue() -> str:
    trees = (ast.parse(path.read_text("utf-8")) for path in sorted(PACKAGE.rglob("*.py")))
    return "\n\n".join(sorted({entry for tree in trees for entry in messages(tree)})) + "\n"


def test_the_wording_of_errors_and_notices_is_the_golden_one(request):
    found = catalogue()
    if request.config.getoption("--regolden"):
        GOLDEN.write_text(found, encoding="utf-8")

    assert found == GOLDEN.read_text("utf-8")


def test_every_code_in_the_source_is_in_the_catalogue():
    pattern = re.compile(r'code="([a-z0-9-]+)"')
    source = "\n".join(path.read_text("utf-8") for path in PACKAGE.rglob("*.py"))
    known = GOLDEN.read_text("utf-8")

    assert [code for code in pattern.findall(source) if code not in known] == []


def test_an_entry_has_the_code_the_message_and_the_advice():
    source = """def read():
        message = f"reading '{path}': expected {3 if wide else 4}, got " "none"
        raise DataError(message, code="images-missing", advice="Add " + name + ".", path=path)"""

    (entry,) = messages(ast.parse(source))

    assert entry == (
        "images-missing  (DataError)\n"
        "    reading '{path}': expected {3 | 4}, got none\n"
        "    -> Add {name}."
    )
