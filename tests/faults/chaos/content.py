"""What a database holds that stays as it is: odd names and one of everything that any build of the server knows and that
`pg_dump` writes alike before and after (so no extension, no ICU, nothing that a crash empties)."""

from __future__ import annotations

POSTGRESQL = r"""
CREATE SCHEMA "sch'e""ma
two";
CREATE TABLE "sch'e""ma
two"."ta;ble\! --" ("co""l" int PRIMARY KEY, "\o |x" text, f float8, n numeric, b bytea, t timestamptz, j jsonb, a text[]);
INSERT INTO "sch'e""ma
two"."ta;ble\! --" VALUES (1, E'\\.\n\\N', 'NaN', 1.00, '\x00ff', '2020-02-02 02:02:02.000002+02', '{"a":1.0}', '{NULL,"x,y"}'),
 (2, NULL, '-0', 1.0, '', 'infinity', 'null', '{}'), (3, 'naïve 🐬', 1e-300, 'NaN', NULL, NULL, NULL, NULL);
CREATE TABLE parted (id int, at date, note text) PARTITION BY RANGE (at);
CREATE TABLE parted_a PARTITION OF parted FOR VALUES FROM ('2020-01-01') TO ('2021-01-01');
CREATE TABLE parted_b PARTITION OF parted DEFAULT;
CREATE INDEX ON parted (id);
INSERT INTO parted SELECT i, '2020-06-01'::date + i, 'n' || i FROM generate_series(1, 500) i;
CREATE TABLE parent (a int); CREATE TABLE child () INHERITS (parent); ALTER TABLE parent ADD COLUMN z text DEFAULT 'zz';
ALTER TABLE child ADD COLUMN own int; INSERT INTO child VALUES (1, 'x', 2); INSERT INTO parent VALUES (9);
CREATE TABLE gen (a int, twice int GENERATED ALWAYS AS (a * 2) STORED, id int GENERATED ALWAYS AS IDENTITY);
INSERT INTO gen (a) SELECT generate_series(1, 10);
CREATE TABLE secret (id int, owner text); ALTER TABLE secret ENABLE ROW LEVEL SECURITY;
ALTER TABLE secret FORCE ROW LEVEL SECURITY; CREATE POLICY nobody ON secret USING (false) WITH CHECK (true);
INSERT INTO secret SELECT i, 'x' FROM generate_series(1, 7) i;
CREATE SEQUENCE called START 5 INCREMENT 3; SELECT nextval('called'); SELECT nextval('called');
CREATE SEQUENCE uncalled; SELECT setval('uncalled', 77, false);
CREATE TYPE mood AS ENUM ('sad', 'ok', 'it''s'); CREATE DOMAIN positive AS int CHECK (VALUE > 0);
CREATE TABLE typed (m mood, p positive); INSERT INTO typed VALUES ('it''s', 3);
CREATE FUNCTION twice(int) RETURNS int LANGUAGE sql IMMUTABLE AS 'SELECT $1 * 2';
CREATE PROCEDURE noop() LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_temp AS 'BEGIN END';
CREATE TABLE fk_a (id int PRIMARY KEY, b int); CREATE TABLE fk_b (id int PRIMARY KEY, a int REFERENCES fk_a);
ALTER TABLE fk_a ADD FOREIGN KEY (b) REFERENCES fk_b DEFERRABLE INITIALLY DEFERRED;
CREATE INDEX twice_index ON fk_a (public.twice(id)) WHERE id > 0;
CREATE VIEW shown AS SELECT id FROM fk_a WHERE id IN (1, 2); CREATE MATERIALIZED VIEW kept AS SELECT count(*) FROM parted;
CREATE MATERIALIZED VIEW empty AS SELECT 1 AS one WITH NO DATA;
CREATE FUNCTION tell() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END';
CREATE TRIGGER off BEFORE INSERT ON fk_a FOR EACH ROW EXECUTE FUNCTION tell(); ALTER TABLE fk_a DISABLE TRIGGER off;
CREATE RULE quiet AS ON DELETE TO typed DO INSTEAD NOTHING;
SELECT lo_from_bytea(4711, decode(repeat('00ff', 700000), 'hex')); SELECT lo_from_bytea(0, '');
CREATE STATISTICS st ON id, note FROM parted; CREATE PUBLICATION pub FOR TABLE fk_a;
ALTER DEFAULT PRIVILEGES IN SCHEMA public GRANT SELECT ON TABLES TO PUBLIC; GRANT SELECT (id) ON fk_b TO PUBLIC;
REVOKE DELETE ON typed FROM CURRENT_USER; COMMENT ON TABLE typed IS 'it''s; \! typed'; COMMENT ON SCHEMA public IS 'mine';
CREATE TABLE "none" ();
INSERT INTO fk_a VALUES (1); INSERT INTO fk_b VALUES (1, 1);
"""
