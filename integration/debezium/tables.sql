-- What is there before either connector starts: their first copy.

CREATE TYPE mood AS ENUM ('sad', 'ok');
CREATE TYPE pair AS (a int, b text);
CREATE DOMAIN positive AS int CHECK (VALUE > 0);
CREATE TABLE types (
 id int PRIMARY KEY, b boolean, i2 smallint, i8 bigint, o oid, f4 real, f8 double precision,
 n12 numeric(12,2), nfree numeric, n5 numeric(5), nneg numeric(3,-2), mo money,
 t text, vc varchar(10), ch char(5), nm name, by bytea,
 d date, t0 time(0), t3 time(3), t6 time, tz timetz, ts0 timestamp(0), ts3 timestamp(3), ts6 timestamp, tstz timestamptz, tstz0 timestamptz(0), iv interval,
 u uuid, j json, jb jsonb, x xml, m mood, dom positive,
 bit1 bit, bit8 bit(8), bit12 bit(12), vb varbit(20), inet inet, cidr cidr, mac macaddr, mac8 macaddr8,
 r4 int4range, rt tsrange, pt point, tsv tsvector, comp pair, mr int4multirange, lsn pg_lsn,
 ai int[], at text[], an numeric(6,2)[], ad date[], ab boolean[], am mood[], au uuid[], ats timestamptz[], aj jsonb[], aby bytea[], aiv interval[], avc varchar(5)[], af8 float8[], anf numeric[], ats6 timestamp[]
);
CREATE TABLE orders (id int PRIMARY KEY, note text NOT NULL, qty int NOT NULL DEFAULT 7, big text);
ALTER TABLE orders ALTER big SET STORAGE EXTERNAL;
CREATE TABLE pairs (a int, b text, v text, PRIMARY KEY (b, a));
CREATE TABLE whole (id int PRIMARY KEY, note text, big text);
ALTER TABLE whole ALTER big SET STORAGE EXTERNAL;
ALTER TABLE whole REPLICA IDENTITY FULL;
CREATE TABLE bag (a int, b text);
ALTER TABLE bag REPLICA IDENTITY FULL;
CREATE TABLE "Odd Name" (id int PRIMARY KEY, "a col" text);
CREATE TABLE uniq (k1 bigint NOT NULL, k2 int NOT NULL, v text);
CREATE UNIQUE INDEX uniq_k ON uniq (k2, k1);
ALTER TABLE uniq REPLICA IDENTITY USING INDEX uniq_k;
CREATE TABLE ended (id int PRIMARY KEY);
CREATE PUBLICATION everything FOR ALL TABLES;
INSERT INTO types VALUES (1, true, -2, 9000000000, 42, 1.5, 0.1, 12.50, 1.230, 12345, 12300, '$-1,234.50',
 'té"xt', 'vc', 'ch', 'nm', '\x00ff10', '2026-11-20', '12:34:56', '12:34:56.789', '12:34:56.789012', '12:34:56.5+04',
 '2026-11-20 12:34:56', '2026-11-20 12:34:56.789', '2026-11-20 12:34:56.789012', '2026-11-20 12:34:56.789012+04', '2026-11-20 12:34:56+04', '1 year 2 mons 3 days 04:05:06.5',
 '0f8fad5b-d9cb-469f-a165-70867728950e', '{"a": 1}', '{"b": [1, 2]}', '<a>1</a>', 'ok', 5,
 B'1', B'10101010', B'000100000010', B'101', '10.0.0.1', '10.0.0.0/8', '08:00:2b:01:02:03', '08:00:2b:01:02:03:04:05',
 '[1,5)', '[2026-01-01,2026-02-01)', '(1.5,2.5)', 'a fat cat', ROW(1, 'x'), '{[1,3),[5,7)}', '0/16B3748',
 '{1,2,NULL}', '{a,"b c",NULL}', '{1.50,NULL}', '{2026-11-20}', '{t,f}', '{ok,sad}', '{0f8fad5b-d9cb-469f-a165-70867728950e}', '{"2026-11-20 12:34:56+04"}', ARRAY['{"a":1}'::jsonb], ARRAY['\x0102'::bytea], '{"1 day"}', '{ab,c}', '{1.5}', '{1.5}', '{"2026-11-20 12:34:56.789012"}');
INSERT INTO types (id) VALUES (2);
INSERT INTO orders VALUES (1, 'one', 1, repeat('x', 5000)), (2, 'two', 2, NULL);
INSERT INTO pairs VALUES (1, 'b', 'v');
INSERT INTO whole VALUES (1, 'n', repeat('y', 5000));
INSERT INTO bag VALUES (1, 'x'), (1, 'x');
INSERT INTO "Odd Name" VALUES (1, 'a');
INSERT INTO uniq VALUES (1, 2, 'v');
