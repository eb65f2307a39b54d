"""Errors of runtimes and engines: stable codes, and texts fit for users that carry no secret."""

from __future__ import annotations


class NovaStackRuntimeError(Exception):
    """Base of what drivers raise. `code` is stable; the text is fit for users and carries no secret."""

    code = "runtime_error"
    retryable = True


class RuntimeUnreachable(NovaStackRuntimeError):
    """The runtime does not answer. Uses up no attempt (rule 4)."""

    code = "runtime_unavailable"


class ImageMissing(NovaStackRuntimeError):
    code = "image_missing"


class PortTaken(NovaStackRuntimeError):
    """The published port belongs to somebody else: try another one."""

    code = "port_taken"


class DataExists(NovaStackRuntimeError):
    """CREATE met data that was there before (rule 9)."""

    code = "data_exists"
    retryable = False


class DataMissing(NovaStackRuntimeError):
    """MUST_EXIST met no data, or data of another server or incarnation (rule 9)."""

    code = "data_missing"
    retryable = False


class DataInUse(NovaStackRuntimeError):
    """Another server process holds the data's lock (rule 10)."""

    code = "data_in_use"


class StaleHandle(NovaStackRuntimeError):
    """The thing under this name is not the one that was recorded (rule 3)."""

    code = "stale_handle"
    retryable = False


class CapacityExhausted(NovaStackRuntimeError):
    """Disk, address pool or memory of the host is used up."""

    code = "capacity_exhausted"


class NoNode(NovaStackRuntimeError):
    """No machine of the runtime may take this server: none has the wanted label, or none of those is ready."""

    code = "no_node"


class AddressRefused(NovaStackRuntimeError):
    """The runtime can't publish on that address only; it would open the port to others."""

    code = "address_refused"
    retryable = False


class NotReachableHere(NovaStackRuntimeError):
    """What was asked needs the machine's own engine, and that one is not among those this region names."""

    code = "node_not_reachable"
    retryable = False


class LimitTooSmall(NovaStackRuntimeError):
    """The server uses more than that; its limits are as they were."""

    code = "limit_too_small"
    retryable = False


class EngineError(Exception):
    """An admin statement failed. `code` is stable; the text carries no secret."""

    code = "engine_error"
    retryable = True


class PartNeedsMore(EngineError):
    """What was chosen of a database can't be without something that was not (`Engine.set_apart`)."""

    code = "dependencies_missing"
    retryable = False


class LoginRefused(EngineError):
    """The server answered and refused these credentials."""

    code = "login_refused"
    retryable = False


class ServerNotReady(EngineError):
    """The server doesn't answer yet, or not any more."""

    code = "server_not_ready"


class TlsNotTrusted(EngineError):
    """What answers does not show the certificate that this install made for the server, or speaks no TLS at all."""

    code = "tls_not_trusted"


class ServerBusy(EngineError):
    """The server answered: it is up, and has no connection left for us."""

    code = "server_busy"


class SourceChanged(EngineError):
    """Somebody held or changed tables just when a dump began: the next one may do."""

    code = "source_changed"
