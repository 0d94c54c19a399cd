"""Files are whole or absent; what is no regular file is left alone."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import pytest

from transpike.cli.options import check_file
from transpike.errors import ConfigError
from transpike.files import write_json


def test_links_are_followed(tmp_path: Path) -> None:
    target, link = tmp_path / "target.json", tmp_path / "link.json"
    link.symlink_to(target)
    assert write_json(link, {"a": 1}) == link
    assert link.is_symlink() and target.read_text() == '{\n  "a": 1\n}\n'
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link.json", "target.json"]


def test_what_is_no_regular_file_is_not_replaced(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(ConfigError, match="cannot write .*pipe: It is no regular file; nothing was changed there"):
        write_json(pipe, {})
    with pytest.raises(ConfigError, match="cannot write --json .*pipe': it is no regular file; name a file"):
        check_file("--json", str(pipe))
    assert stat.S_ISFIFO(pipe.stat().st_mode) and list(tmp_path.iterdir()) == [pipe]


def test_bytes_of_a_name_that_are_no_utf8_are_spelled_out(tmp_path: Path) -> None:
    told = {"caf\udce9.png": ["na\udcefve", "ok é"]}
    path = write_json(tmp_path / "a.json", told)
    assert json.loads(path.read_bytes()) == {r"caf\udce9.png": [r"na\udcefve", "ok é"]}


@pytest.mark.skipif(os.geteuid() == 0, reason="everything may be written by the superuser")
def test_no_permission_is_found_before_the_work(tmp_path: Path) -> None:
    tmp_path.chmod(0o555)
    with pytest.raises(ConfigError, match="cannot write --json .*: no permission to write to"):
        check_file("--json", str(tmp_path / "new" / "r.json"))
