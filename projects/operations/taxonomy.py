"""Why an operation can fail: every stable code, whether trying again may help, and what to do about it.

`docs/errors.md` shows this table, and a test holds it against the source: a code that is raised and not listed fails it.
The third column of `CODES` is seed 001's name for the error, where it has one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Code:
    """`retryable` None: it depends on what exactly was refused; the operation's `error` says it."""

    meaning: str
    advice: str
    retryable: bool | None = True
    seed: str = ""


WAIT = "It is tried again by itself."
OPERATOR = "For the operator."
_CORRUPT = "The backup is corrupt: take another, and look at the storage's disks."
CODES: Mapping[str, Code] = {
    # --- making a database
    "project_gone": Code("The project is being removed.", "Nothing.", False, "ProjectNotFoundError"),
    "database_creation_failed": Code(
        "The engine refused to make the database or its logins.",
        f"{WAIT} Its own words are in `detail`.",
        None,
        "DatabaseCreationError",
    ),
    "schema_creation_failed": Code(
        "The engine refused to make the bootstrap tables.",
        f'{WAIT} Its own words are in `detail`; `"bootstrap_schema": false` leaves them out.',
        None,
        "SchemaCreationError",
    ),
    "api_key_generation_failed": Code(
        "The control database refused to store the project's API keys.",
        f"{WAIT} {OPERATOR}",
        True,
        "ApiKeyGenerationError",
    ),
    "region_unavailable": Code(
        "The region has no runtime, or is switched off.",
        "Choose another region, or have an operator set it up.",
        False,
        "RegionUnavailableError",
    ),
    "deadline_exceeded": Code(
        "A step took longer than it may.",
        f"{WAIT} Look whether the host is overloaded.",
        True,
        "ProvisioningTimeoutError",
    ),
    "no_answer": Code(
        "The server runs, but nothing answers at its port.",
        "Its image must listen on the engine's port.",
        True,
        "ProvisioningTimeoutError",
    ),
    "server_not_ready": Code(
        "The server does not answer now, or the way to it is cut.",
        f"{WAIT} A server that went away is started again.",
        True,
        "ProvisioningNetworkError",
    ),
    "runtime_unavailable": Code(
        "The region's runtime can't be reached.",
        "It waits and uses up no attempt; `not_available` meanwhile.",
        True,
        "ProvisioningNetworkError",
    ),
    # --- services around it
    "service_unreachable": Code(
        "A service's endpoint did not answer in time, or must not be reached.",
        "Tried again, unless its address is not allowed (`NOVASTACK_OUTBOUND_ALLOW`).",
        None,
        "ServiceRegistrationError",
    ),
    "service_failed": Code("A service answered 408, 425, 429 or 5xx.", WAIT, True, "ServiceRegistrationError"),
    "service_refused": Code(
        "A service refused the project: another 4xx.", "Ask who runs the service.", False, "ServiceRegistrationError"
    ),
    "service_answer_invalid": Code(
        "A service's answer has not the agreed shape: it may have registered, and did not say so.",
        "Tried again with the same id. See docs/services.md.",
        True,
        "ServiceRegistrationError",
    ),
    # --- images, hosts, room
    "image_missing": Code("No image of this engine's version can be had.", "Run `make images`, or let the host pull."),
    "port_taken": Code("The port belongs to somebody else.", "The next one is tried by itself."),
    "no_free_port": Code("All ports of the region are in use.", "Widen the region's range. " + OPERATOR),
    "capacity_exhausted": Code("A disk, or the host's memory, is full.", f"Free some. {OPERATOR}", None),
    "no_node": Code("No node of the Swarm fits.", f"{WAIT} Look at the nodes and their labels. {OPERATOR}"),
    "address_refused": Code(
        "The engine can't publish at the region's address.", f"Correct the region. {OPERATOR}", False
    ),
    "node_not_reachable": Code(
        "The server runs on a machine that workers can't reach.", f"Correct the region. {OPERATOR}", False
    ),
    "limit_too_small": Code(
        "The server uses more than the new limit.", "Choose a higher one; all is as it was.", False
    ),
    "runtime_error": Code("The runtime refused what it was told.", f"{WAIT} Its own words are in `detail`."),
    # --- servers and their data
    "server_exited": Code("The server ended while it was starting.", "The end of its log is in `detail`."),
    "server_busy": Code("All connections of the server are in use.", WAIT),
    "not_stopped": Code("The server still runs after it was told to stop.", WAIT),
    "data_exists": Code(
        "There is data already where new data was to be made.", f"Nothing was touched. {OPERATOR}", False
    ),
    "data_missing": Code(
        "The server's own data is not there, or is another's.", f"No empty server takes its place. {OPERATOR}", False
    ),
    "data_in_use": Code("Another server runs on this data.", f"{WAIT} The second one was refused."),
    "stale_handle": Code("What was found is not what was recorded.", f"Nothing was touched. {OPERATOR}", False),
    "not_empty": Code("Something is in there that nobody expected.", f"Nothing was removed. {OPERATOR}", False),
    # --- logins, passwords, TLS
    "login_refused": Code(
        "The server refuses NovaStack's own login.", f"Its image must set the password it is given. {OPERATOR}", False
    ),
    "engine_error": Code("The engine refused a statement.", f"{WAIT} Its own words are in `detail`."),
    "rotation_not_proven": Code("The new password did not log in.", f"{WAIT} The old one stays until it does."),
    "tls_not_available": Code("The server speaks no TLS.", "Restart it; see `server.tls_reason`.", False),
    "tls_name_invalid": Code("No certificate can be made for the region's address.", f"Correct the region. {OPERATOR}"),
    "tls_not_applied": Code("The server does not show its new certificate yet.", WAIT),
    "tls_not_trusted": Code("What answers does not show the certificate made for it.", f"{WAIT} {OPERATOR}"),
    # --- pools and standbys
    "engine_unknown": Code("This release knows no such engine.", OPERATOR, False),
    "not_wanted": Code("Nobody wants this server any more.", "Nothing: it is removed.", False),
    "standby_in_use": Code("A project took the standby meanwhile.", "Nothing.", False),
    "not_given_up": Code(
        "A database of the project is left that nobody has given up.", f"Nothing was forgotten. {OPERATOR}"
    ),
    "pool_in_use": Code("Databases live on the pool.", "Drain it first.", False),
    # --- copies
    "copy_interrupted": Code("A copy was cut short.", f"{WAIT} The source is as it was."),
    "dump_failed": Code(
        "The engine's dump tool failed.", "Its own words are in `detail`; the source is as it was.", None
    ),
    "restore_failed": Code(
        "The engine's restore tool failed, or the dump did not come whole.",
        "Its own words are in `detail`; the source is as it was.",
        None,
    ),
    "source_lost": Code("The source's server went away while it was copied.", f"{WAIT} It is started again."),
    "source_changed": Code(
        "Tables were held or changed by others just as the dump began.", f"{WAIT} The source is as it was."
    ),
    "target_lost": Code("The target's server went away while it was copied to.", f"{WAIT} The source is as it was."),
    "copy_differs": Code(
        "The copy is not what the source is.",
        "`detail` says in what; it was thrown away, the source is as it was.",
        False,
    ),
    "plan_too_small": Code("The data is larger than the plan allows.", "Choose a larger plan.", False),
    "not_movable": Code(
        "The database holds what a copy would lose: prepared transactions, replication slots, subscriptions.",
        "`detail` says what; remove it first.",
        False,
    ),
    "not_fenced": Code(
        "Clients could not be shut out: sessions that were open let others in again.",
        f"{WAIT} Close those clients; nothing was changed.",
    ),
    "move_not_supported": Code("This engine can't be moved yet.", "Nothing was changed.", False),
    "no_pool": Code("No shared server with room came up in time.", "For the operator. Ask for it again.", False),
    "target_full": Code(
        "The copy does not fit where it is to go.", "Choose a larger plan; the source is as it was.", False
    ),
    "tools_missing": Code(
        "The engine's dump and restore tools are not where its server runs.",
        "Docker: build its image anew (`images/build`), which servers need not be. Processes: put them on PATH.",
        False,
    ),
    "tool_killed": Code("A tool was ended from outside.", WAIT),
    "tool_out_of_memory": Code("A tool needed more memory than it may.", OPERATOR),
    # --- backups and their storages
    "backup_not_supported": Code("This engine can't be backed up yet.", "Nothing was changed.", False),
    "backup_too_large": Code(
        "The organization's quota for the storage of backups does not hold it.",
        "Delete backups, or have the quota raised; what was stored of it was removed.",
        False,
    ),
    "storage_unreachable": Code("The storage does not answer.", WAIT, None),
    "storage_refused": Code(
        "The storage refuses NovaStack: its credentials, or its rights.", "Test it, and correct it.", None
    ),
    "storage_full": Code("The storage is full.", "Make room, or choose another storage.", None),
    "storage_missing": Code(
        "The storage's folder or bucket is not there.", "Is it mounted? Correct the storage.", None
    ),
    "storage_failed": Code("The storage failed.", f"{WAIT} Its own words are in `detail`.", None),
    "storage_owned": Code(
        "Another target, or another install, writes there.", "Choose another folder or prefix.", None
    ),
    "storage_read_only": Code(
        "Nothing is written to this storage.", "It says why; take it over again if it is yours.", False
    ),
    "object_missing": Code("What was stored is not in the storage any more.", "Look who removes objects there.", None),
    "object_locked": Code("The storage keeps the object from being removed.", "It can go when its lock is over.", None),
    # --- proofs of backups
    "final_backup_gone": Code(
        "The final backup of a project that is deleted was removed before it was verified.",
        "Delete it with `final_backup=false`.",
        retryable=False,
    ),
    "final_backup_corrupt": Code(
        "What the final backup restored was not what was dumped.",
        "Another one is taken by itself, once; nothing is deleted meanwhile. If that is corrupt as well,"
        " `final_backup=false` deletes without it.",
        retryable=None,
    ),
    "final_backup_not_verified": Code(
        "The final backup could not be verified; its words say why.",
        "It is verified again by itself; nothing is deleted meanwhile. `final_backup=false` deletes without it.",
        retryable=True,
    ),
    "no_scratch_region": Code(
        "No region can run a throw-away server of that version now.",
        f"It says which lacks what. The backup is as it was; it is verified again later. {OPERATOR}",
    ),
    "nothing_to_compare": Code("The backup's manifest does not say what it holds.", "It can only be restored.", False),
    "hash_mismatch": Code("What is stored is not what was stored.", _CORRUPT, False),
    "truncated": Code("What is stored is shorter, or longer, than what was stored.", _CORRUPT, False),
    "wrong_key": Code(
        "No key that is known here opens it.", "Bring back the organization's key from its recovery kit.", False
    ),
    "bad_archive": Code("What is stored is no archive, or a damaged one.", _CORRUPT, False),
    "bad_signature": Code(
        "Nobody whom this install knows has signed the manifest, or it was changed since.",
        "Bring back the signing key from the recovery kit; else somebody has changed it.",
        False,
    ),
    "manifest_damaged": Code("The manifest can't be read.", _CORRUPT, False),
    "manifest_mismatch": Code("The manifest in the storage is another backup's.", _CORRUPT, False),
    "content_differs": Code(
        "What the backup restores is not what was dumped.",
        "`differences` of the proof says in what. Take another backup.",
        False,
    ),
    # --- uploads
    "upload_not_recognised": Code("The file is no dump of this product.", "Send what its dump tool wrote.", False),
    "upload_empty": Code("The file is empty.", "Take the dump again, and look at the tool's exit code.", False),
    "upload_encoding": Code(
        "The file is text in UTF-16.", "Let the dump tool write the file (`--file`), not PowerShell's `>`.", False
    ),
    "upload_directory_format": Code(
        "The file is a packed folder of the directory format, or a part of one.",
        "Take the dump with `--format=custom`, or make SQL of the folder: `pg_restore --file=dump.sql FOLDER`.",
        False,
    ),
    "upload_tar_format": Code(
        "The file is a tar archive that `pg_dump --format=tar` did not write.", "Send the dump itself.", False
    ),
    "upload_compression": Code(
        "The file is packed, or an archive compressed within, in a way that is not taken.",
        "Send it as it is, or packed once with gzip or zstd; within an archive lz4 is taken as well.",
        False,
    ),
    "upload_wrong_engine": Code("The file is a dump of another product.", "Choose a project of that one.", False),
    "upload_newer_version": Code(
        "The file was taken from a newer version than the project's.",
        "Choose a project of that version, or newer.",
        False,
    ),
    "upload_cluster_dump": Code(
        "The file is about a whole server, or about several databases.",
        "Take the dump of one database, without `--create`, `--databases` or pg_dumpall.",
        False,
    ),
    "upload_damaged": Code("The file is damaged.", "Take or send it again; its SHA-256 stands on the backup.", False),
    "upload_truncated": Code("The file is cut off.", "Take or send it again.", False),
    "upload_meta_command": Code(
        "The file holds a command of the client program, such as `\\!` or `\\i`.",
        "Nothing of the kind was run. Take it out, at the line that is named.",
        False,
    ),
    "upload_statement_too_large": Code(
        "A statement of the file is larger than 64 MiB.",
        "Take the dump with COPY, or fewer rows in a statement.",
        False,
    ),
    "upload_too_large": Code(
        "The file, or what it holds unpacked, is larger than uploads may be.",
        "Send less, or have the operator raise `NOVASTACK_UPLOAD_BYTES` or `NOVASTACK_UPLOAD_UNPACKED_BYTES`.",
        False,
    ),
    "upload_statement_failed": Code(
        "The server refused a statement of the file.",
        "`detail` has its line and the server's words. Nothing was kept.",
        False,
    ),
    # --- restores
    "backup_gone": Code("The backup that was to be restored is not there any more.", "Choose another one.", False),
    "backup_not_usable": Code(
        "The backup is not whole: it failed, is being taken, or is damaged.", "Choose another one.", False
    ),
    "engine_differs": Code("The backup is of another engine than the project.", "Choose another project.", False),
    "version_too_old": Code(
        "The server's version is older than the one that was backed up.", "Restore into a newer version.", False
    ),
    "restore_differs": Code(
        "What was restored is not what was backed up.",
        "`detail` says in what. It was thrown away; what is live was not touched.",
        False,
    ),
    "restore_unproven": Code(
        "What came into the live database is not what was backed up any more: it was changed before it could be compared.",
        "It stays where `detail` says. Restore it again and leave it alone until the restore has ended.",
        False,
    ),
    "not_in_backup": Code("The backup does not have a table that was chosen.", "Choose among its `tables`.", False),
    "dependencies_missing": Code(
        "What was chosen uses types, functions or extensions that the live database does not have; or, in a new project, a"
        " column is of the type of a table that was not chosen.",
        "Make them first, or restore into a new project; choose that table as well. What is live was not touched.",
        False,
    ),
    "safety_backup_failed": Code(
        "The backup that is taken before a restore could not be proven.",
        "Nothing was touched. Its own error says why; or restore into a new project.",
        False,
    ),
    "undo_not_possible": Code(
        "The database from before a restore is not there any more, or another one took its place.",
        "Nothing was changed. Restore the safety backup.",
        False,
    ),
    # --- the operation itself
    "control_restored": Code(
        "It was under way when the control backup that was brought back was made.",
        "Of a move: look which of its databases is the newer one. Of a project that waited for a place on a pool: look"
        f" whether the doctor names its database; a retry makes a new one. {OPERATOR}",
        False,
    ),
    "cancelled": Code("Somebody cancelled it.", "What it did was undone.", False),
    "definition_changed": Code("It was begun by another version of NovaStack.", "Ask for it again.", False),
    "poison": Code("It ended its worker five times.", f"{OPERATOR} Ask for it again when that is mended."),
    "internal_error": Code("Something broke on our side.", f"The worker's log has it. {OPERATOR}", None),
}


def document() -> str:
    """The table of docs/errors.md."""
    said = {True: "yes", False: "no", None: "depends"}
    rows = [
        f"| `{code}` | {said[row.retryable]} | {row.meaning} | {row.advice} | {row.seed} |"
        for code, row in CODES.items()
    ]
    return "\n".join(["| Code | Retryable | Means | What to do | Seed 001 |", "|---|---|---|---|---|", *rows])
