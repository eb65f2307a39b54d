#!/usr/bin/env python3
"""Health of one of our containers: exit 0 when it works, 1 with a reason when it doesn't.

usage: novastack-healthcheck web | worker | beat

`web` asks /healthz. `worker` looks at the age of the file that its event loop touches every few seconds
(novastack/celery.py, NOVASTACK_HEARTBEAT_FILE): a worker that lost its broker stops doing so. `beat` looks at the age
of its schedule, which it writes at least every three minutes.
"""

import http.client
import os
import sys
import time
from pathlib import Path

WORKER_MAX_AGE_S = 60
BEAT_MAX_AGE_S = 400
BEAT_SCHEDULE = Path("/tmp/celerybeat-schedule")  # noqa: S108  # the container's own /tmp; docker-compose.yml


def web() -> str:
    """The reason why the web does not answer, or nothing."""
    connection = http.client.HTTPConnection("127.0.0.1", 8000, timeout=4)
    try:
        connection.request("GET", "/healthz")
        status = connection.getresponse().status
    except (http.client.HTTPException, OSError) as error:
        return f"/healthz: {error}"
    finally:
        connection.close()
    return "" if status == 200 else f"/healthz answered {status}"


def file_age(pattern: Path, limit_s: int) -> str:
    """The reason why the newest of the files `pattern*` is too old, or nothing."""
    times = [path.stat().st_mtime for path in pattern.parent.glob(pattern.name + "*")]
    if not times:
        return f"{pattern} does not exist"
    age = time.time() - max(times)
    return "" if age < limit_s else f"{pattern} was last written {age:.0f} s ago"


def main() -> int:
    role = sys.argv[1] if len(sys.argv) > 1 else "web"
    if role == "web":
        problem = web()
    elif role == "worker":
        problem = file_age(Path(os.environ["NOVASTACK_HEARTBEAT_FILE"]), WORKER_MAX_AGE_S)
    else:
        problem = file_age(BEAT_SCHEDULE, BEAT_MAX_AGE_S)
    if problem:
        sys.stderr.write(problem + "\n")
    return 1 if problem else 0


if __name__ == "__main__":
    sys.exit(main())
