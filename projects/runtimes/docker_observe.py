"""What a list of containers means. One list call; only what changed, or does not run, is inspected (rule 25)."""

from __future__ import annotations

import json
import math
import threading
import time
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

import docker.errors

from projects.domain import Observation, ServerState
from projects.runtimes import docker_spec
from projects.runtimes.docker_client import DockerClients, mapped

# A container that has been up for a minute is listed as "Up About a minute"; before that, in seconds. So a restart
# between two looks can't be missed as long as they are closer together than this.
_TRUST_SECONDS = 45.0
_KILLS_MATTER_SECONDS = 3600
_CLOCK_MATTERS_SECONDS = 300
_OOM = json.dumps({"type": ["container"], "event": ["oom"]})
_SLOW_SECONDS = 0.5  # an engine that takes so long for a short answer is asked for several at a time
_PARALLEL = 8
_HOPELESS = 4  # restarts by the daemon after which a server that ends at once counts as stopped


class Observer:
    def __init__(self, clients: DockerClients) -> None:
        self._clients = clients
        self._kept: dict[str, tuple[str, float, Observation]] = {}
        self._lock = threading.Lock()
        self._ahead = 0.0  # the engine's clock before ours; seconds
        self._ahead_at = -math.inf
        self._heard = 0  # the engine's clock when it was last asked; seconds since 1970
        self._kills: dict[str, int] = {}  # container → when one of its processes was last killed for memory

    def _hear(self) -> None:
        """Ask what was killed for memory since the last time. A container outlives the end of one of its processes, or is
        started again by the engine before anybody looks: nothing else tells. One short call, whatever the number."""
        client: Any = self._clients.get()
        with mapped():
            if time.monotonic() - self._ahead_at > _CLOCK_MATTERS_SECONDS:
                self._ahead, self._ahead_at = _clock_of(client) - time.time(), time.monotonic()
            now = int(time.time() + self._ahead)
            since = self._heard or now - _KILLS_MATTER_SECONDS
            answer = client._get(
                client._url("/events"), params={"since": since, "until": now, "filters": _OOM}, timeout=client.timeout
            )
            client._raise_for_status(answer)
        self._heard = now
        for line in answer.text.splitlines():
            event = json.loads(line)
            with self._lock:
                self._kills[str(event["id"])] = int(event["time"])
            self.forget(str(event["id"]))
        with self._lock:
            self._kills = {c: at for c, at in self._kills.items() if at > now - _KILLS_MATTER_SECONDS}

    def observe(self, listed: Iterable[Mapping[str, Any]]) -> dict[str, Observation]:
        """Name → what was seen of it."""
        began = time.monotonic()
        self._hear()
        slow = time.monotonic() - began > _SLOW_SECONDS
        named = {str(each["Names"][0]).lstrip("/"): each for each in listed if each.get("Names")}
        with ThreadPoolExecutor(_PARALLEL if slow else 1) as pool:  # it starts a thread when there is something to ask
            seen = pool.map(self._one, named.values()) if slow else map(self._one, named.values())
            return {name: found for name, found in zip(named, seen, strict=True) if found is not None}

    def _with_kill(self, container: str, seen: Observation, *, by_engine: bool) -> Observation:
        """What runs, with what was killed in it, or brought it down before this start: `by_engine`, and no person's, who
        knows by then."""
        at = self._kills.get(container)
        if at is None or seen.state is not ServerState.RUNNING or seen.started_at is None:
            return seen
        inside = at >= seen.started_at.timestamp()
        if not (inside or by_engine):
            return seen
        what = "one of its processes was" if inside else "it was started again after it was"
        clock = datetime.fromtimestamp(at, UTC).strftime("%H:%M")
        return replace(seen, oom_killed=True, detail=f"{what} killed at {clock} UTC: out of memory")

    def forget(self, container: str) -> None:
        with self._lock:
            self._kept.pop(container, None)

    def _one(self, listed: Mapping[str, Any]) -> Observation | None:
        name, state = str(listed["Id"]), str(listed["State"])
        now = time.monotonic()
        with self._lock:
            kept = self._kept.get(name)
        fresh = "second" in str(listed.get("Status", ""))
        if kept is not None and kept[0] == state and not fresh and now - kept[1] < _TRUST_SECONDS:
            observation = kept[2]
        else:
            with mapped():
                try:
                    inspected = self._clients.get().inspect_container(name)
                except docker.errors.NotFound:
                    return None
            by_engine = int(inspected.get("RestartCount") or 0) > 0  # a start that was asked for sets it to 0
            observation = self._with_kill(name, describe(inspected), by_engine=by_engine)
        with self._lock:
            self._kept[name] = (state, now, observation)
        return observation


def _clock_of(client: Any) -> int:
    """The engine's own clock, which may be another than ours. Whole seconds, rounded down: an engine that is asked for
    what is still to come waits for it."""
    answer = client._get(client._url("/_ping"), timeout=client.timeout)
    client._raise_for_status(answer)
    date = answer.headers.get("Date")
    return int(parsedate_to_datetime(date).timestamp()) if date else int(time.time()) - 60


def describe(inspected: Mapping[str, Any]) -> Observation:
    """The observation of an inspected container."""
    state = inspected["State"]
    status, code = str(state["Status"]), int(state["ExitCode"])
    killed = bool(state.get("OOMKilled"))
    up = status == "running"
    detail = ""
    if status == "restarting" and code not in docker_spec.REFUSALS:
        hopeless = int(inspected.get("RestartCount") or 0) >= _HOPELESS
        meaning = ServerState.STOPPED if hopeless else ServerState.STARTING
        detail = f"it keeps ending with code {code}" if hopeless else f"it ended with code {code} and is started again"
        if killed:
            detail += " (out of memory)"
    elif up:
        meaning = ServerState.RUNNING
    else:
        meaning = ServerState.STOPPED
        detail = _reason(status, code, killed=killed, error=str(state.get("Error") or ""))
    return Observation(
        state=meaning,
        ref=str(inspected["Id"]),
        started_at=time_of(str(state.get("StartedAt") or "")) if up else None,
        exit_code=None if up or status == "created" else code,
        oom_killed=killed and not up,  # of one that runs the engine's events tell, with their time
        detail=detail,
        spec_hash=str((inspected["Config"].get("Labels") or {}).get(docker_spec.SPEC, "")),
    )


def _reason(status: str, code: int, *, killed: bool, error: str) -> str:
    if code in docker_spec.REFUSALS:
        return docker_spec.REFUSALS[code]
    if killed:
        return "killed: out of memory"
    if status == "paused":
        return "paused outside NovaStack"
    if status == "created":
        return "made, but never started"
    if error:
        return " ".join(error.split())[:300]
    if code == 137:
        return "killed"
    return f"ended with code {code}" if code else ""


def time_of(text: str) -> datetime | None:
    """Docker's RFC 3339 with nanoseconds; year 1 means never."""
    if not text or text.startswith("0001"):
        return None
    seconds, _, rest = text.rstrip("Z").partition(".")
    return datetime.fromisoformat(f"{seconds}.{(rest + '000000')[:6]}").replace(tzinfo=UTC)
