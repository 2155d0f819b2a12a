"""CONTRIBUTING.md names every room of the library, and docs/model.md files and classes that are there."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TEXT = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
MODEL = (ROOT / "docs" / "model.md").read_text(encoding="utf-8")


def test_the_tree_has_a_line_for_every_room() -> None:
    tree = re.search(r"```\n(jobs/.*?)```", TEXT, re.DOTALL)
    assert tree is not None
    named = re.findall(r"^  (\S+)  ", tree[1].partition("mnerqg/")[2].partition("cluster/")[0], re.MULTILINE)
    rooms = [
        f"{path.name}/" if path.is_dir() else path.name
        for path in (ROOT / "mnerqg").iterdir()
        if path.name not in ("__init__.py", "__pycache__")
    ]
    assert sorted(named) == sorted(rooms)


def test_the_table_from_paper_to_code_names_what_is_there() -> None:
    rows = re.findall(r"^\|.*\| `(\S+\.py)` \| `(\w+)` \|$", MODEL, re.MULTILINE)
    assert len(rows) == MODEL.count(".py` | `") > 20
    for file, name in rows:
        body = ast.parse((ROOT / file).read_text(encoding="utf-8")).body
        assert name in {node.name for node in body if isinstance(node, ast.ClassDef | ast.FunctionDef)}, file
