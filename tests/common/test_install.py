"""The install's row."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest
from django.db import connection

from novastack.common.models import Install

pytestmark = pytest.mark.django_db(transaction=True)


def test_writers_of_notes_lose_nothing_of_each_other() -> None:
    """Each of four threads writes its own key over and over; in the end every key has its last value."""
    Install.merge_notes(kept="yes")
    start = Barrier(4)

    def write(name: str) -> None:
        try:
            start.wait(timeout=60)
            for number in range(25):
                Install.merge_notes(**{name: number, "nested": {"by": name}})
        finally:
            connection.close()

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(write, "abcd"))
    notes = Install.load().notes
    assert {name: notes[name] for name in "abcd"} == dict.fromkeys("abcd", 24)
    assert notes["kept"] == "yes" and notes["nested"]["by"] in "abcd"
