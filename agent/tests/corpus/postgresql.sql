-- A database that holds what is hard to copy. Run as the administrator, in a database that "shop owner" owns.
SET client_min_messages = error;
SET ROLE "shop owner";
CREATE SCHEMA app;
CREATE SCHEMA "Odd.schema ""x""";
COMMENT ON SCHEMA app IS 'the application''s own';
ALTER DEFAULT PRIVILEGES IN SCHEMA app GRANT SELECT ON TABLES TO reader;
ALTER DEFAULT PRIVILEGES GRANT EXECUTE ON FUNCTIONS TO reader;

CREATE EXTENSION hstore;
CREATE EXTENSION citext;
CREATE EXTENSION pg_trgm SCHEMA app;

CREATE TYPE app.mood AS ENUM ('sad', 'it''s ok', 'happy');
CREATE TYPE app.pair AS (a int, b text, c app.mood);
CREATE DOMAIN app.positive AS int CHECK (VALUE > 0);
CREATE DOMAIN app.email AS public.citext CHECK (VALUE ~ '@');
CREATE TYPE app.floatrange AS RANGE (subtype = float8, subtype_diff = float8mi);
CREATE COLLATION app.german (provider = icu, locale = 'de-u-co-phonebk');
CREATE COLLATION app.nocase (provider = icu, locale = 'und-u-ks-level2', deterministic = false);

CREATE TABLE app.every_type (
  id bigint GENERATED ALWAYS AS IDENTITY (START WITH 100 INCREMENT BY 7) PRIMARY KEY,
  a_smallint smallint, a_int int, a_numeric numeric, a_numeric_scaled numeric(30, 10), a_real real, a_double double precision,
  a_money money, a_char char(5), a_varchar varchar(20), a_text text, a_name name, a_bytea bytea, a_bool boolean,
  a_date date, a_time time, a_timetz timetz, a_timestamp timestamp, a_timestamptz timestamptz, an_interval interval,
  a_point point, a_line line, a_box box, a_path path, a_polygon polygon, a_circle circle,
  an_inet inet, a_cidr cidr, a_macaddr macaddr, a_macaddr8 macaddr8, a_bit bit(5), a_varbit varbit,
  a_tsvector tsvector, a_tsquery tsquery, a_uuid uuid, an_xml xml, a_json json, a_jsonb jsonb, a_jsonpath jsonpath,
  an_int4range int4range, a_tstzmultirange tstzmultirange, a_floatrange app.floatrange,
  a_mood app.mood, a_pair app.pair, pairs app.pair[], a_positive app.positive, moods app.mood[], an_email app.email,
  ints int[], texts text[][], an_hstore public.hstore, an_oid oid, a_regclass regclass, a_regtype regtype, a_pg_lsn pg_lsn,
  german text COLLATE app.german, nocase text COLLATE app.nocase UNIQUE,
  doubled int GENERATED ALWAYS AS (a_int * 2) STORED
);
INSERT INTO app.every_type (a_smallint, a_int, a_numeric, a_numeric_scaled, a_real, a_double, a_money, a_char, a_varchar,
  a_text, a_name, a_bytea, a_bool, a_date, a_time, a_timetz, a_timestamp, a_timestamptz, an_interval, a_point, a_line, a_box,
  a_path, a_polygon, a_circle, an_inet, a_cidr, a_macaddr, a_macaddr8, a_bit, a_varbit, a_tsvector, a_tsquery, a_uuid, an_xml,
  a_json, a_jsonb, a_jsonpath, an_int4range, a_tstzmultirange, a_floatrange, a_mood, a_pair, pairs, a_positive, moods,
  an_email, ints, texts, an_hstore, an_oid, a_regclass, a_regtype, a_pg_lsn, german, nocase)
VALUES
  (1, 2, 3.14159265358979323846264338327950288, 1.0000000001, 1.1, 0.1, '$1,234.56', 'ab', 'va', E'tab\there\nline\\back\r', 'n',
   '\x00ff10', true, '2024-02-29', '23:59:59.999999', '12:00:00+02', '2024-01-01 00:00:00', '2024-01-01 00:00:00+00',
   '1 year -2 mons +3 days 04:05:06.789', '(1.5,2)', '{1,2,3}', '(1,1),(0,0)', '((0,0),(1,1))', '((0,0),(1,1),(2,0))', '<(0,0),1>',
   '::1/64', '10.0.0.0/8', '08:00:2b:01:02:03', '08:00:2b:01:02:03:04:05', B'10101', B'1', 'fat:2A & cat', 'fat & !cat',
   'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11', '<a>&amp;<![CDATA[x]]></a>', '{"b":1,"a":  2,"b":3}', '{"b":1,"a":2}', '$.a[*] ? (@ > 1)',
   '[1,5)', '{[2020-01-01,2021-01-01),[2022-01-01,)}', '[1.5,2.5]', 'it''s ok', '(1,"a,""b",happy)', ARRAY[ROW(1, NULL, 'sad')::app.pair],
   5, '{sad,happy}', 'A@b.c', '{1,NULL,3}', '{{a,NULL},{"x,y","{}"}}', 'a=>1,"b c"=>NULL', 4294967295, 'app.every_type', 'app.pair',
   '16/B374D848', 'Ärger', 'Case');
INSERT INTO app.every_type (a_text, a_numeric, a_real, a_double, a_date, a_timestamptz, texts, a_bytea, an_xml, nocase, a_varchar)
VALUES ('', 'NaN', 'Infinity', '-Infinity', 'infinity', '-infinity', '{}', '', '<x/>', 'other', '\N'),
       (NULL, 'Infinity', 'NaN', '-0', '4713-01-01 BC', '294276-12-31 23:59:59.999999+00', '[0:1]={a,b}', NULL, NULL, NULL, 'NULL'),
       ('\.', 1e-300, 1e-45, 5e-324, NULL, NULL, NULL, NULL, NULL, NULL, '');
UPDATE app.every_type SET a_json = (SELECT json_agg(i) FROM generate_series(1, 5) i) WHERE a_text = '\.';

CREATE TABLE app.nothing ();
INSERT INTO app.nothing SELECT FROM generate_series(1, 7);
CREATE TABLE app.empty (x int);
CREATE TABLE app.only_generated (y int GENERATED ALWAYS AS (42) STORED);
INSERT INTO app.only_generated DEFAULT VALUES;
INSERT INTO app.only_generated DEFAULT VALUES;
CREATE TABLE app.huge (id int PRIMARY KEY, body text, raw bytea);
ALTER TABLE app.huge ALTER body SET STORAGE EXTERNAL;
INSERT INTO app.huge SELECT 1, string_agg(md5(i::text), ''), decode(string_agg(md5(i::text), ''), 'hex') FROM generate_series(1, 650000) i;
INSERT INTO app.huge VALUES (2, 'small', NULL);
DO $$ BEGIN
  EXECUTE 'CREATE TABLE app.wide (' || (SELECT string_agg(format('c%s bool', i), ', ') FROM generate_series(1, 1600) i) || ')';
  EXECUTE 'INSERT INTO app.wide (c1, c800, c1600) VALUES (true, false, true), (NULL, NULL, NULL)';
END $$;
CREATE TABLE "Odd.schema ""x"""."Tab.le with ""quotes"", commas; and 'more' ünïcode" ("Col.umn ""1""" int, "select" text, "ünï" int);
INSERT INTO "Odd.schema ""x"""."Tab.le with ""quotes"", commas; and 'more' ünïcode" VALUES (1, 'x', 2), (NULL, '', NULL);
CREATE TABLE app.aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa (x int);
CREATE TABLE app.dropped_columns (a int, b text, c int, d text DEFAULT 'd');
INSERT INTO app.dropped_columns VALUES (1, 'b', 2), (3, 'c', 4);
ALTER TABLE app.dropped_columns DROP COLUMN b;
ALTER TABLE app.dropped_columns ADD COLUMN e int DEFAULT 9;

CREATE TABLE app.events (id int, at date NOT NULL, kind text, PRIMARY KEY (id, at, kind)) PARTITION BY RANGE (at);
CREATE TABLE app.events_2023 PARTITION OF app.events FOR VALUES FROM ('2023-01-01') TO ('2024-01-01');
CREATE TABLE app.events_2024 PARTITION OF app.events FOR VALUES FROM ('2024-01-01') TO ('2025-01-01') PARTITION BY LIST (kind);
CREATE TABLE app.events_2024_a PARTITION OF app.events_2024 FOR VALUES IN ('a', 'b');
CREATE TABLE app.events_2024_rest PARTITION OF app.events_2024 DEFAULT PARTITION BY HASH (id);
CREATE TABLE app.events_2024_h0 PARTITION OF app.events_2024_rest FOR VALUES WITH (MODULUS 2, REMAINDER 0);
CREATE TABLE app.events_2024_h1 PARTITION OF app.events_2024_rest FOR VALUES WITH (MODULUS 2, REMAINDER 1);
CREATE INDEX ON app.events (kind, at);
INSERT INTO app.events SELECT i, date '2023-01-01' + i % 700, chr(97 + i % 5) FROM generate_series(1, 2000) i;
CREATE TABLE app.parent (a int, b text);
CREATE TABLE app.child (c int) INHERITS (app.parent);
INSERT INTO app.parent VALUES (1, 'parent');
INSERT INTO app.child VALUES (2, 'child', 3);
ALTER TABLE app.parent ADD COLUMN later text DEFAULT 'added';
CREATE UNLOGGED TABLE app.unlogged (x int);
INSERT INTO app.unlogged VALUES (1), (2);

CREATE TABLE app.a (id int PRIMARY KEY, b int);
CREATE TABLE app.b (id int PRIMARY KEY, a int REFERENCES app.a DEFERRABLE INITIALLY DEFERRED, self int REFERENCES app.b);
ALTER TABLE app.a ADD CONSTRAINT a_b FOREIGN KEY (b) REFERENCES app.b DEFERRABLE INITIALLY DEFERRED;
BEGIN; INSERT INTO app.a VALUES (1, 1), (2, 2); INSERT INTO app.b VALUES (1, 2, 2), (2, 1, 1); COMMIT;
CREATE TABLE app.not_valid (x int);
INSERT INTO app.not_valid VALUES (-1);
ALTER TABLE app.not_valid ADD CONSTRAINT positive CHECK (x > 0) NOT VALID;
CREATE TABLE app.bookings (room int, during tsrange, EXCLUDE USING gist (during WITH &&) DEFERRABLE);
INSERT INTO app.bookings VALUES (1, '[2024-01-01,2024-01-02)'), (1, '[2024-01-02,2024-01-03)');

CREATE TABLE app.audit (id serial PRIMARY KEY, what text, at timestamptz DEFAULT '2024-01-01');
CREATE TABLE app.audited (id serial PRIMARY KEY, x int);
CREATE FUNCTION app.remember() RETURNS trigger LANGUAGE plpgsql AS $body$
BEGIN INSERT INTO app.audit (what) VALUES (TG_OP || ' ; ' || NEW.x); RETURN NEW; END $body$;
CREATE TRIGGER remember BEFORE INSERT ON app.audited FOR EACH ROW EXECUTE FUNCTION app.remember();
INSERT INTO app.audited (x) SELECT generate_series(1, 10);
CREATE TRIGGER never BEFORE UPDATE ON app.audited FOR EACH ROW EXECUTE FUNCTION app.remember();
ALTER TABLE app.audited DISABLE TRIGGER never;
CREATE TABLE app.swallowing (x int);
INSERT INTO app.swallowing VALUES (1), (2), (3);
CREATE RULE swallow AS ON INSERT TO app.swallowing DO INSTEAD NOTHING;
CREATE FUNCTION app.modern(x int) RETURNS int LANGUAGE sql IMMUTABLE BEGIN ATOMIC SELECT CASE WHEN x > 1 THEN x ELSE 1 END; END;
CREATE PROCEDURE app.doing(INOUT x int) LANGUAGE plpgsql AS $$ BEGIN x := x + 1; END $$;
CREATE AGGREGATE app.product(int) (SFUNC = int4mul, STYPE = int, INITCOND = '1');
CREATE OPERATOR app.=== (LEFTARG = int, RIGHTARG = int, FUNCTION = int4eq);
CREATE TEXT SEARCH CONFIGURATION app.own (COPY = pg_catalog.english);
CREATE STATISTICS app.correlated (dependencies) ON id, kind FROM app.events_2023;
-- Found only on the application's own path.
CREATE FUNCTION public.helper(x int) RETURNS int LANGUAGE plpgsql IMMUTABLE AS $$ BEGIN RETURN x + 1; END $$;
CREATE FUNCTION public.unqualified(x int) RETURNS int LANGUAGE plpgsql IMMUTABLE AS $$ BEGIN RETURN helper(x); END $$;
SET search_path = public;
CREATE TABLE app.needs_path (x int CHECK (unqualified(x) > 0), y int GENERATED ALWAYS AS (unqualified(x)) STORED);
INSERT INTO app.needs_path VALUES (1), (2);
CREATE INDEX ON app.needs_path (unqualified(x));
RESET search_path;

CREATE VIEW app.v1 AS SELECT id, a_text FROM app.every_type;
CREATE VIEW app.v2 WITH (security_barrier) AS SELECT * FROM app.v1 WHERE a_text IS NOT NULL;
CREATE MATERIALIZED VIEW app.z_first AS SELECT kind, count(*) AS n FROM app.events GROUP BY kind;
CREATE VIEW app.between AS SELECT * FROM app.z_first WHERE n > 0;
CREATE MATERIALIZED VIEW app.a_second AS SELECT sum(n) AS total FROM app.between;
CREATE UNIQUE INDEX ON app.z_first (kind);
CREATE MATERIALIZED VIEW app.unpopulated AS SELECT 1 AS x WITH NO DATA;

CREATE TABLE app.tenants (id int, tenant text);
INSERT INTO app.tenants VALUES (1, 'a'), (2, 'b');
ALTER TABLE app.tenants ENABLE ROW LEVEL SECURITY;
ALTER TABLE app.tenants FORCE ROW LEVEL SECURITY;
CREATE POLICY own ON app.tenants USING (tenant = current_setting('app.tenant', true)) WITH CHECK (true);

CREATE SEQUENCE app.odd INCREMENT BY -5 MINVALUE -1000 MAXVALUE 50 START 50 CYCLE CACHE 3;
SELECT nextval('app.odd'), nextval('app.odd');
CREATE SEQUENCE app.untouched START 17;
CREATE SEQUENCE app.full_up AS smallint MAXVALUE 3;
SELECT nextval('app.full_up'), nextval('app.full_up'), nextval('app.full_up');
CREATE SEQUENCE "Odd.schema ""x"""."Seq""uence";
SELECT setval('"Odd.schema ""x"""."Seq""uence"', 41, false);

GRANT USAGE ON SCHEMA app TO reader;
GRANT SELECT ON ALL TABLES IN SCHEMA app TO reader;
REVOKE SELECT ON app.audit FROM reader;
GRANT SELECT (id), UPDATE (x) ON app.audited TO reader WITH GRANT OPTION;
GRANT USAGE ON SEQUENCE app.odd TO PUBLIC;
REVOKE EXECUTE ON FUNCTION app.modern(int) FROM PUBLIC;
COMMENT ON COLUMN app.audited.x IS E'odd ''comment''; with\nlines';
COMMENT ON TRIGGER remember ON app.audited IS 'must not fire';

RESET ROLE;
SELECT lo_from_bytea(700001, 'small'), lo_from_bytea(700002, ''), lo_from_bytea(700003, decode(repeat('ab', 3000000), 'hex'));
ALTER LARGE OBJECT 700001 OWNER TO "shop owner";
ALTER LARGE OBJECT 700003 OWNER TO reader;
GRANT SELECT ON LARGE OBJECT 700001 TO reader WITH GRANT OPTION;
COMMENT ON LARGE OBJECT 700003 IS 'big';
CREATE TABLE app.of_another (x int);
INSERT INTO app.of_another VALUES (1);
ALTER TABLE app.of_another OWNER TO reader;
CREATE FUNCTION app.of_admin() RETURNS int LANGUAGE sql SECURITY DEFINER AS 'SELECT 1';
CREATE EXTENSION pg_stat_statements;
CREATE PUBLICATION some_tables FOR TABLE app.a, app.b (id);
ALTER PUBLICATION some_tables OWNER TO "shop owner";
