"""What is written down of faults, and the table made of it. Without any fault."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.faults import table


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("NOVASTACK_FAULTS_LEDGER", str(tmp_path / "ledger.jsonl"))
    return tmp_path / "ledger.jsonl"


def lines(file: Path) -> list[dict[str, object]]:
    return [json.loads(text) for text in file.read_text().splitlines()]


def test_a_run_is_one_line_also_when_it_fails(ledger, file, capsys):
    with ledger.fault("power cut", engine="postgresql", runtime="docker", point="1") as run:
        run.recovering()
        run.ended()
        run.orphans = run.lost_rows = 0
    with pytest.raises(RuntimeError), ledger.fault("power cut", engine="postgresql", runtime="process") as run:
        run.recovering()
        raise RuntimeError("it never ended")
    with pytest.raises(pytest.skip.Exception), ledger.fault("power cut"):
        pytest.skip("no power here")
    kept, broken = lines(file)
    assert (kept["outcome"], kept["stuck"], kept["orphans"], kept["lost_rows"]) == ("ok", 0, 0, 0)
    assert isinstance(kept["seconds"], float)
    assert (broken["outcome"], broken["stuck"], broken["orphans"], broken["seconds"]) == ("failed", 1, None, None)
    assert str(broken["test"]).endswith("test_a_run_is_one_line_also_when_it_fails")

    assert table.main([]) == 1
    said = capsys.readouterr()
    row = next(line for line in said.out.splitlines() if "power cut" in line)
    assert [cell.strip() for cell in row.strip("| ").split("|")][1:4] == ["postgresql", "docker, process", "2"]
    assert "it never ended" in said.err


def test_the_latest_run_of_a_point_counts_and_nobody_looked_is_not_zero(ledger, file, tmp_path):
    with pytest.raises(AssertionError), ledger.fault("a", point="x") as run:
        run.orphans = 3
        raise AssertionError
    with ledger.fault("a", point="x") as run:
        run.recovering()
        run.ended()
    document = tmp_path / "reliability.md"
    document.write_text(f"Before\n{table.BEGIN}\nold\n{table.END}\nafter\n")
    assert table.main(["--write", str(document), str(file)]) == 0
    text = document.read_text()
    assert text.startswith("Before\n")
    assert text.endswith("after\n")
    assert "old" not in text
    row = next(line for line in text.splitlines() if line.startswith("| a "))
    assert [cell.strip() for cell in row.strip("| ").split("|")][3:] == ["1", "0.0", "–", "–", "0", "0"]


def test_one_must_say_when_recovery_began(ledger, file):
    with pytest.raises(AssertionError, match="recovering"), ledger.fault("a") as run:
        run.ended()
    assert lines(file)[0]["outcome"] == "failed"


def test_no_ledger_no_table(file, capsys):
    assert table.main([]) == 1
    assert "No runs recorded" in capsys.readouterr().err
