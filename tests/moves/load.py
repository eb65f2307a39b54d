"""A client that writes while its database moves."""

from __future__ import annotations

import contextlib
import threading
import time
from typing import Any, ClassVar, Self

from projects.models import Endpoint, Project
from tests.clients import Access
from tests.faults.clients import password_of, role_of
from tests.faults.conftest import Site


class Load:
    """Writes all the time through one session for as long as it lives, and comes again when it is thrown out.
    `acknowledged` were committed."""

    thrown_out: ClassVar[tuple[type[Exception], ...]]

    def __init__(self, site: Site, project: Project) -> None:
        role, endpoint = role_of(project), Endpoint.objects.get(project=project)
        self._site = site
        self._where = Access(
            endpoint.host, endpoint.port, role.database.name, role.name, password_of(role), unchecked=True
        )
        self.acknowledged: list[int] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work, daemon=True)

    def session(self) -> contextlib.AbstractContextManager[Any]:
        return self._site.client.session(self._where)

    def write(self, session: Any, number: int) -> None:
        raise NotImplementedError

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(30)

    def _work(self) -> None:
        number = 0
        while not self._stop.is_set():
            try:
                with self.session() as session:
                    while not self._stop.is_set():
                        number += 1
                        self.write(session, number)
                        self.acknowledged.append(number)
                        time.sleep(0.01)
            except self.thrown_out:
                time.sleep(0.05)
