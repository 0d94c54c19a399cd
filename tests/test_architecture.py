"""The rules of docs/architecture.md, executed."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "src" / "transpike"
ROOMS = re.findall(r"^\| `(\w+)` \|", (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8"), re.MULTILINE)
FILES = sorted(PACKAGE.rglob("*.py"))


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_rooms(path: Path) -> set[str]:
    """Rooms a file imports, inside functions too; not what only type checkers see."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            node.body = []
    depth = len(path.relative_to(PACKAGE).parts)
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found.update(n.name.split(".")[1] for n in node.names if n.name.startswith("transpike."))
        elif isinstance(node, ast.ImportFrom):
            found.update(_rooms_from(node, depth))
    return found


def _rooms_from(node: ast.ImportFrom, depth: int) -> set[str]:
    module = (node.module or "").split(".")
    if node.level == 0 and module[0] == "transpike":
        return {module[1]} if len(module) > 1 else {name.name for name in node.names}
    if node.level == depth:  # from the package's root
        return {module[0]} if module[0] else {name.name for name in node.names}
    return set()


def test_every_room_is_on_the_map() -> None:
    here = {room_of(path) for path in FILES if path.name != "__init__.py" or path.parent != PACKAGE}
    assert here == set(ROOMS)
    assert len(ROOMS) == len(set(ROOMS))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_run_up_the_list(path: Path) -> None:
    if path == PACKAGE / "__init__.py":
        pytest.skip("the door imports what it opens")
    above = ROOMS[: ROOMS.index(room_of(path))]
    wrong = imported_rooms(path) - set(above) - {room_of(path), "__version__"}
    assert not wrong, f"{path.name} imports {', '.join(sorted(wrong))}, which stands below it"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_only_the_command_line_prints_or_exits(path: Path) -> None:
    if room_of(path) == "cli":
        pytest.skip("the command line prints")
    calls = {
        ast.unparse(node.func) for node in ast.walk(ast.parse(path.read_text("utf-8"))) if isinstance(node, ast.Call)
    }
    assert not calls & {"print", "sys.exit", "exit", "os._exit"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_files_and_functions_stay_short(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 400
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            start = node.body[0].lineno  # a signature full of options is not long code
            assert (node.end_lineno or start) - start < 60, f"{node.name} is too long"


def test_the_rules_can_fail(tmp_path: Path) -> None:
    """A planted upward import is found."""
    planted = ast.parse("from ..cli import main\nimport transpike.pipeline\nfrom transpike.report import document")
    found = {room for node in planted.body if isinstance(node, ast.ImportFrom) for room in _rooms_from(node, 2)}
    assert found == {"cli", "report"}
