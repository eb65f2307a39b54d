"""The definitions of a PostgreSQL database's objects, as text that the server spells: of views, defaults, checks, policies,
indexes, triggers, rules, functions' signatures …, each told as two hashes.

Not every text survives a restore as it was: the server spells a few expressions in other words once (a CHECK with
`varchar IN (…)` gets its casts elsewhere, nested ANDs lose a parenthesis, literals in later parts of a UNION get a name).
So there is a second hash, of the text without casts, parentheses and aliases: copies that agree in that one only are told,
not called wrong (`Fingerprint.differences` and `remarks`).

All in one query. The server reads some of it from the newest catalog, whatever the snapshot: who needs one moment reads
twice, around it.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator

from projects.domain import EXTENSION_VERSION, TEXT, TEXTS
from projects.engines.postgresql_session import BoundedConnection

_OURS = "n.nspname <> 'information_schema' AND n.nspname !~ '^pg_'"


def member(catalog: str, oid: str) -> str:
    """That it belongs to an extension."""
    return (
        f"EXISTS (SELECT FROM pg_depend e WHERE e.classid = '{catalog}'::regclass AND e.objid = {oid}"
        " AND e.deptype = 'e')"
    )


# As pg_dump has it: what a CREATE INDEX CONCURRENTLY that failed or still runs has left is not dumped. On partitioned
# tables an index stays invalid until each partition has its own, and is.
DUMPED_INDEX = "(i.indisvalid OR t.relkind = 'p') AND i.indisready"
UNDUMPED_INDEXES = (
    f"SELECT i.indexrelid FROM pg_index i JOIN pg_class t ON t.oid = i.indrelid WHERE NOT ({DUMPED_INDEX})"
)
# A partition's part of a foreign key is made with the key, and its name is the server's choice.
UNDUMPED_CONSTRAINTS = f"""SELECT u.oid FROM pg_constraint u WHERE u.contype = 'f' AND u.conparentid <> 0
             OR u.contype IN ('p', 'u', 'x') AND u.conindid IN ({UNDUMPED_INDEXES})"""
# Of a constraint k, of the type y. pg_dump of 17 named no NOT NULL of a domain at first: a restore gave it the default's name,
# and that is what it is told by (cut to 63 bytes, as the server cuts it), whatever it is called.
CONSTRAINT_NAME = """CASE WHEN k.contype = 'n' AND k.contypid <> 0
                     THEN substr((repeat('_', 9) || y.typname)::name::text, 10) || '_not_null' ELSE k.conname END"""
# A name without a function, as another operator's COMMUTATOR or NEGATOR makes it: pg_dump passes it over.
DUMPED_OPERATOR = "o.oprcode <> 0"


def described(catalog: str) -> str:
    """Which objects `o` of a catalog are told by the server's own description."""
    shell = f" AND {DUMPED_OPERATOR}" if catalog == "pg_operator" else ""
    return f"o.oid >= 16384 AND NOT {member(catalog, 'o.oid')}{shell}"


def _described(catalog: str, text: str, more: str = "") -> str:
    return (
        f"SELECT pg_describe_object('{catalog}'::regclass, o.oid, 0), {text} FROM {catalog} o {more}"
        f" WHERE {described(catalog)}"
    )


# ruff: noqa: S608 - our own words only; each gives (name, text)
_TEXTS: dict[str, str] = {
    "view": f"""SELECT format('%I.%I', n.nspname, c.relname), pg_get_viewdef(c.oid)
          FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
         WHERE c.relkind IN ('v', 'm') AND c.relpersistence <> 't' AND {_OURS} AND NOT {member("pg_class", "c.oid")}""",
    "table": f"""SELECT * FROM (SELECT format('%I.%I', n.nspname, c.relname) AS name, concat_ws('|',
                  CASE WHEN c.relkind = 'p' THEN pg_get_partkeydef(c.oid) END,
                  CASE WHEN c.reloftype <> 0 THEN format_type(c.reloftype, NULL) END,
                  (SELECT t.reloptions::text FROM pg_class t WHERE t.oid = c.reltoastrelid),
                  (SELECT concat_ws('|', s.srvname, f.ftoptions::text) FROM pg_foreign_table f
                     JOIN pg_foreign_server s ON s.oid = f.ftserver WHERE f.ftrelid = c.oid)) AS text
          FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
         WHERE c.relkind IN ('r', 'p', 'f', 'm') AND c.relpersistence <> 't' AND {_OURS}
           AND NOT {member("pg_class", "c.oid")}) x WHERE text <> ''""",
    "column": f"""SELECT * FROM (SELECT format('%I.%I.%I', n.nspname, c.relname, a.attname) AS name, concat_ws('|',
                  CASE WHEN coalesce(a.attstattarget, -1) <> -1 THEN a.attstattarget END, a.attfdwoptions::text,
                  (SELECT k.nspname FROM pg_collation l JOIN pg_namespace k ON k.oid = l.collnamespace
                    WHERE l.oid = a.attcollation AND k.nspname <> 'pg_catalog')) AS text
          FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid JOIN pg_namespace n ON n.oid = c.relnamespace
         WHERE a.attnum > 0 AND NOT a.attisdropped AND c.relkind IN ('r', 'p', 'v', 'm', 'f', 'c')
           AND c.relpersistence <> 't' AND {_OURS} AND NOT {member("pg_class", "c.oid")}) x WHERE text <> ''""",
    "default": f"""SELECT format('%I.%I.%I', n.nspname, c.relname, a.attname), pg_get_expr(d.adbin, d.adrelid)
          FROM pg_attrdef d JOIN pg_class c ON c.oid = d.adrelid JOIN pg_namespace n ON n.oid = c.relnamespace
          JOIN pg_attribute a ON a.attrelid = d.adrelid AND a.attnum = d.adnum
         WHERE c.relpersistence <> 't' AND NOT a.attisdropped AND {_OURS} AND NOT {member("pg_class", "c.oid")}""",
    "index": f"""SELECT format('%I.%I', n.nspname, c.relname), concat_ws('|', pg_get_indexdef(i.indexrelid),
                  (SELECT string_agg(format('%s:%s', a.attnum, a.attstattarget), ',' ORDER BY a.attnum) FROM pg_attribute a
                    WHERE a.attrelid = c.oid AND coalesce(a.attstattarget, -1) <> -1))
          FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid JOIN pg_class t ON t.oid = i.indrelid
          JOIN pg_namespace n ON n.oid = c.relnamespace
         WHERE t.relpersistence <> 't' AND {DUMPED_INDEX} AND {_OURS} AND NOT {member("pg_class", "c.oid")}
           AND NOT {member("pg_class", "t.oid")}""",
    "constraint": f"""SELECT format('%I.%s.%I', n.nspname, coalesce(quote_ident(t.relname), y.typname),
                  {CONSTRAINT_NAME}),
               pg_get_constraintdef(k.oid)
          FROM pg_constraint k JOIN pg_namespace n ON n.oid = k.connamespace LEFT JOIN pg_class t ON t.oid = k.conrelid
          LEFT JOIN pg_type y ON y.oid = k.contypid
         WHERE {_OURS} AND coalesce(t.relpersistence, 'p') <> 't' AND k.oid NOT IN ({UNDUMPED_CONSTRAINTS})
           AND NOT {member("pg_class", "k.conrelid")} AND NOT {member("pg_type", "k.contypid")}""",
    "trigger": f"""SELECT format('%I.%I.%I', n.nspname, c.relname, g.tgname), pg_get_triggerdef(g.oid)
          FROM pg_trigger g JOIN pg_class c ON c.oid = g.tgrelid JOIN pg_namespace n ON n.oid = c.relnamespace
         WHERE NOT g.tgisinternal AND c.relpersistence <> 't' AND {_OURS}""",
    "rule": f"""SELECT format('%I.%I.%I', n.nspname, c.relname, r.rulename), concat_ws('|', r.ev_enabled, pg_get_ruledef(r.oid))
          FROM pg_rewrite r JOIN pg_class c ON c.oid = r.ev_class JOIN pg_namespace n ON n.oid = c.relnamespace
         WHERE r.rulename <> '_RETURN' AND c.relpersistence <> 't' AND {_OURS} AND NOT {member("pg_class", "c.oid")}""",
    "policy": f"""SELECT format('%I.%I.%I', n.nspname, c.relname, p.polname),
               concat_ws('|', pg_get_expr(p.polqual, p.polrelid), '', pg_get_expr(p.polwithcheck, p.polrelid))
          FROM pg_policy p JOIN pg_class c ON c.oid = p.polrelid JOIN pg_namespace n ON n.oid = c.relnamespace
         WHERE {_OURS}""",
    "routine": f"""SELECT format('%I.%I(%s)', n.nspname, p.proname, pg_get_function_identity_arguments(p.oid)),
               concat_ws('|', pg_get_function_arguments(p.oid), pg_get_function_result(p.oid), pg_get_function_sqlbody(p.oid),
                  p.probin, p.prosupport::text,
                  (SELECT string_agg(format_type(x.type, NULL), ',' ORDER BY x.at)
                     FROM unnest(p.protrftypes) WITH ORDINALITY AS x(type, at)),
                  (SELECT concat_ws('|', g.aggkind, g.aggnumdirectargs, g.aggtransfn, g.aggfinalfn, g.aggcombinefn,
                          g.aggserialfn, g.aggdeserialfn, g.aggmtransfn, g.aggminvtransfn, g.aggmfinalfn, g.aggfinalextra,
                          g.aggmfinalextra, g.aggfinalmodify, g.aggmfinalmodify, g.aggsortop::regoperator,
                          format_type(g.aggtranstype, NULL), g.aggtransspace, g.agginitval, g.aggminitval)
                     FROM pg_aggregate g WHERE g.aggfnoid = p.oid))
          FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace WHERE {_OURS} AND NOT {member("pg_proc", "p.oid")}""",
    "type": f"""SELECT * FROM (SELECT format('%I.%I', n.nspname, t.typname) AS name, concat_ws('|',
                  coalesce(pg_get_expr(t.typdefaultbin, 0), t.typdefault),
                  CASE WHEN t.typtype = 'd' AND t.typcollation <> 0 THEN t.typcollation::regcollation::text END,
                  (SELECT concat_ws('|', format_type(r.rngsubtype, NULL), o.opcname, nullif(r.rngcollation, 0)::regcollation,
                          nullif(r.rngcanonical, 0)::regproc, nullif(r.rngsubdiff, 0)::regproc)
                     FROM pg_range r JOIN pg_opclass o ON o.oid = r.rngsubopc WHERE r.rngtypid = t.oid)) AS text
          FROM pg_type t JOIN pg_namespace n ON n.oid = t.typnamespace
         WHERE t.typtype IN ('d', 'r') AND {_OURS} AND NOT {member("pg_type", "t.oid")}) x WHERE text <> ''""",
    "sequence": f"""SELECT format('%I.%I', n.nspname, c.relname), format('%I.%I.%I', tn.nspname, t.relname, a.attname)
          FROM pg_depend d JOIN pg_class c ON c.oid = d.objid JOIN pg_namespace n ON n.oid = c.relnamespace
          JOIN pg_class t ON t.oid = d.refobjid JOIN pg_namespace tn ON tn.oid = t.relnamespace
          JOIN pg_attribute a ON a.attrelid = t.oid AND a.attnum = d.refobjsubid
         WHERE d.classid = 'pg_class'::regclass AND d.refclassid = 'pg_class'::regclass AND d.deptype IN ('a', 'i')
           AND d.refobjsubid > 0 AND c.relkind = 'S' AND c.relpersistence <> 't' AND {_OURS}
           AND NOT {member("pg_class", "c.oid")}""",
    "publication": """SELECT quote_ident(p.pubname), concat_ws('|',
                  (SELECT string_agg(format('%I', n.nspname), ',' ORDER BY n.nspname) FROM pg_publication_namespace s
                     JOIN pg_namespace n ON n.oid = s.pnnspid WHERE s.pnpubid = p.oid), '',
                  (SELECT string_agg(format('%I.%I (%s) %s', n.nspname, c.relname,
                            (SELECT string_agg(quote_ident(a.attname), ',' ORDER BY a.attname) FROM pg_attribute a
                              WHERE a.attrelid = c.oid AND a.attnum = ANY(r.prattrs::int2[])),
                            pg_get_expr(r.prqual, r.prrelid)), ',' ORDER BY n.nspname, c.relname)
                     FROM pg_publication_rel r JOIN pg_class c ON c.oid = r.prrelid
                     JOIN pg_namespace n ON n.oid = c.relnamespace WHERE r.prpubid = p.oid))
         FROM pg_publication p""",
    "statistics": _described("pg_statistic_ext", "concat_ws('|', pg_get_statisticsobjdef(o.oid), o.stxstattarget)"),
    "event trigger": _described(
        "pg_event_trigger", "concat_ws('|', o.evtevent, o.evtenabled, o.evtfoid::regproc, o.evttags::text)"
    ),
    "cast": _described("pg_cast", "concat_ws('|', o.castcontext, o.castmethod, nullif(o.castfunc, 0)::regprocedure)"),
    "operator": _described(
        "pg_operator",
        "concat_ws('|', o.oprcode, o.oprcanhash, o.oprcanmerge, o.oprcom::regoperator, o.oprnegate::regoperator, o.oprrest,"
        " o.oprjoin)",
    ),
    "conversion": _described(
        "pg_conversion", "concat_ws('|', o.conproc, o.condefault, o.conforencoding, o.contoencoding)"
    ),
    # Its columns are others in each version. The library's own version is the server's matter.
    "collation": _described(
        "pg_collation",
        "(to_jsonb(o) - '{oid,collname,collnamespace,collowner,collversion}'::text[])::text",
    ),
    "text search configuration": _described(
        "pg_ts_config",
        "concat_ws('|', p.prsname, (SELECT string_agg(format('%s %s %s', m.maptokentype, m.mapseqno,"
        " m.mapdict::regdictionary), ',' ORDER BY m.maptokentype, m.mapseqno) FROM pg_ts_config_map m"
        " WHERE m.mapcfg = o.oid))",
        "JOIN pg_ts_parser p ON p.oid = o.cfgparser",
    ),
    "text search dictionary": _described(
        "pg_ts_dict", "concat_ws('|', t.tmplname, o.dictinitoption)", "JOIN pg_ts_template t ON t.oid = o.dicttemplate"
    ),
    "foreign server": _described(
        "pg_foreign_server",
        "concat_ws('|', w.fdwname, o.srvtype, o.srvversion, o.srvoptions::text, o.srvacl::text)",
        "JOIN pg_foreign_data_wrapper w ON w.oid = o.srvfdw",
    ),
}  # fmt: skip
_EXTENSIONS = "SELECT quote_ident(x.extname), x.extversion FROM pg_extension x WHERE x.oid >= 16384"
_QUERY = " UNION ALL ".join(
    f"SELECT '{kind}'::text, q.* FROM ({query}) AS q (name, text)"
    for kind, query in [*_TEXTS.items(), ("", _EXTENSIONS)]
)

_TOKEN = re.compile(
    r"""(?P<text>[EeBbXx]?'(?:[^']|'')*'|\$(?P<tag>\w*)\$.*?\$(?P=tag)\$)|(?P<name>"(?:[^"]|"")*"|[^\W\d][\w$]*)
        |(?P<space>\s+)|(?P<cast>::)|(?P<other>\d[\w.]*|.)""",
    re.VERBOSE | re.DOTALL,
)
_NAME = re.compile(r'["a-z_]|[^\x00-\x7f]')  # the server writes its keywords in capital letters
# The words that a type's name may have after its first one.
_MORE_WORDS = {
    "character": {"varying"}, "bit": {"varying"}, "double": {"precision"},
    "time": {"with", "without", "time", "zone"}, "timestamp": {"with", "without", "time", "zone"},
    "interval": {"year", "month", "day", "hour", "minute", "second", "to"},
}  # fmt: skip


def told(connection: BoundedConnection) -> dict[tuple[str, str], str]:
    """Facts of a fingerprint, all by one query. Its session must show values always in the same way
    (`postgresql_fingerprint.prepare`). Raises what the driver raises."""
    found = {TEXTS: ",".join(sorted(_TEXTS))}
    for kind, name, text in connection.execute(_QUERY).fetchall():  # type: ignore[arg-type]
        if kind:
            found[TEXT + str(kind), str(name)] = f"{_hash(str(text or ''))} {_hash(loose(str(text or '')))}"
        else:
            found[EXTENSION_VERSION, str(name)] = str(text)
    return found


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def loose(text: str) -> str:
    """A definition without what a restore may spell otherwise: casts, parentheses, aliases, spaces."""
    return " ".join(_kept(text))


def _kept(text: str) -> Iterator[str]:
    tokens = [match for match in _TOKEN.finditer(text) if match.lastgroup != "space"]
    at, before = 0, ""
    while at < len(tokens):
        match, word = tokens[at], tokens[at].group()
        at += 1
        if match["cast"]:
            at = _type_end(tokens, at)
        elif word == "AS" and at < len(tokens) and _NAME.match(tokens[at].group()):
            at = _names_end(tokens, at + 1)
        elif word not in "()":
            yield word
            if _NAME.match(word) and (before in (")", "ORDINALITY") or _NAME.match(before)):
                at = _names_end(tokens, at)
        before = word


def _names_end(tokens: list[re.Match[str]], at: int) -> int:
    """Where the names of a table alias' columns have ended, if they begin there: `alias(a, b)`. With ordinality the server
    adds one more at each restore."""
    if at >= len(tokens) or tokens[at].group() != "(":
        return at
    end = at + 1
    while end + 1 < len(tokens) and _NAME.match(tokens[end].group()):
        if tokens[end + 1].group() == ")":
            return end + 2
        if tokens[end + 1].group() != ",":
            break
        end += 2
    return at


def _type_end(tokens: list[re.Match[str]], at: int) -> int:
    """Where the name of a type that begins there has ended."""

    def word(place: int) -> str:
        return tokens[place].group() if place < len(tokens) else ""

    first = word(at)
    at += 1
    while word(at) == ".":
        first, at = "", at + 2
    more = _MORE_WORDS.get(first, set())
    while True:
        if word(at) == "(" and re.fullmatch(r"-?\d+|-", word(at + 1) or ""):
            while at < len(tokens) and word(at) != ")":
                at += 1
            at += 1
        elif word(at) in more:
            at += 1
        else:
            break
    while word(at) == "[":
        at += 1 + (word(at + 1) != "]")
        at += 1
    return at
