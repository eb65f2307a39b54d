"""The page about isolation shows the list that is tried."""

from pathlib import Path

from tests.engines.attacks import by_name, table
from tests.engines.attacks_mysql import MARIADB, MYSQL
from tests.engines.attacks_postgresql import POSTGRESQL

PAGE = Path(__file__).parents[2] / "docs/isolation.md"


def test_the_page_shows_what_is_tried() -> None:
    text = PAGE.read_text()
    for title, attacks in (("PostgreSQL", POSTGRESQL), ("MySQL", MYSQL), ("MariaDB", MARIADB)):
        assert f"### {title}\n\n{table(by_name(attacks))}\n" in text, "run python -m tests.engines.attacks"


def test_every_known_limit_says_what_it_is() -> None:
    for attacks in (POSTGRESQL, MYSQL, MARIADB):
        for name, tried in by_name(attacks).items():
            if any(attack.outcome == "known limit" for attack in tried):
                assert any(attack.note for attack in tried), name
