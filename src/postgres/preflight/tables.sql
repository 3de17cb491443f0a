-- Every table of the database that could be captured or is published, with what speaks against it. {members} is a
-- subquery for those that are published, {filtered} a condition, {refused} `s` or `v` where the identity has columns that
-- are generated and not sent, else empty.
--
-- What is below a partitioned table is read from pg_inherits, once for all of them: pg_partition_tree() would lock every
-- partition, and thousands of locks in one transaction are more than a server has room for, and the others' to miss.
WITH RECURSIVE usable AS (SELECT i.indrelid, bool_or(i.indisprimary) AS is_primary, bool_or(i.indisreplident) AS chosen
FROM pg_index i WHERE (i.indisprimary OR i.indisreplident) AND i.indisvalid AND i.indisunique
AND i.indimmediate AND i.indpred IS NULL GROUP BY 1),
identity AS MATERIALIZED (SELECT l.oid, s.nspname, l.relname, l.relkind, l.relreplident, l.relpersistence,
CASE l.relreplident WHEN 'f' THEN true WHEN 'd' THEN coalesce(u.is_primary, false)
WHEN 'i' THEN coalesce(u.chosen, false) ELSE false END AND r.refused = '' AS is_identified, r.refused,
(SELECT array_agg(a.attname) FROM pg_index i JOIN pg_attribute a
ON a.attrelid = l.oid AND a.attnum = ANY ((i.indkey::int2[])[0:i.indnkeyatts - 1]) WHERE i.indrelid = l.oid
AND CASE l.relreplident WHEN 'i' THEN i.indisreplident WHEN 'n' THEN false ELSE i.indisprimary END
AND i.indisvalid AND i.indisunique AND i.indimmediate AND i.indpred IS NULL) AS key
FROM pg_class l JOIN pg_namespace s ON s.oid = l.relnamespace LEFT JOIN usable u ON u.indrelid = l.oid
CROSS JOIN LATERAL (SELECT {refused} AS refused) r
WHERE l.relkind IN ('r', 'p', 'f') AND s.nspname <> 'information_schema' AND s.nspname NOT LIKE 'pg\_%'),
tree AS (SELECT oid AS root, oid AS part, relkind FROM pg_class WHERE relkind = 'p' UNION ALL
SELECT t.root, i.inhrelid, c.relkind FROM tree t JOIN pg_inherits i ON i.inhparent = t.part AND NOT i.inhdetachpending
JOIN pg_class c ON c.oid = i.inhrelid WHERE t.relkind = 'p'),
below AS MATERIALIZED (SELECT t.root, own.nspname, own.relname, own.relkind <> 'r' OR own.relpersistence = 'u' AS is_outside,
own.relkind = 'r' AND NOT own.is_identified AS is_bad, own.refused,
own.relkind = 'r' AND own.relreplident <> 'f' AND NOT coalesce(top.key <@ own.key, false) AS is_other
FROM tree t JOIN identity own ON own.oid = t.part JOIN identity top ON top.oid = t.root WHERE own.relkind <> 'p'),
bad AS (SELECT DISTINCT ON (root) root, nspname, relname, refused FROM below WHERE is_bad ORDER BY 1, 2, 3),
other AS (SELECT DISTINCT ON (root) root, nspname, relname FROM below WHERE is_other ORDER BY 1, 2, 3),
outside AS (SELECT DISTINCT ON (root) root, nspname, relname FROM below WHERE is_outside ORDER BY 1, 2, 3)
SELECT own.nspname, own.relname, published.oid IS NOT NULL, c.relispartition, c.relpersistence = 'u',
pg_has_role(c.relowner, 'USAGE'),
has_table_privilege(c.oid, 'SELECT') AND has_schema_privilege(c.relnamespace, 'USAGE'),
row_security_active(c.oid), {filtered},
CASE WHEN c.relkind = 'p' THEN bad.nspname WHEN NOT own.is_identified THEN own.nspname END,
CASE WHEN c.relkind = 'p' THEN bad.relname WHEN NOT own.is_identified THEN own.relname END,
(SELECT x.relname FROM pg_index i JOIN pg_class x ON x.oid = i.indexrelid WHERE i.indrelid = c.oid
AND i.indisunique AND i.indimmediate AND i.indisvalid AND i.indpred IS NULL AND i.indexprs IS NULL
AND NOT EXISTS (SELECT FROM pg_attribute a WHERE a.attrelid = c.oid AND a.attnum = ANY (i.indkey)
AND NOT a.attnotnull) ORDER BY i.indnkeyatts, x.relname LIMIT 1),
EXISTS (SELECT FROM pg_index i WHERE i.indrelid = c.oid AND i.indisprimary AND NOT i.indimmediate),
outside.nspname, outside.relname, c.relkind = 'p', other.nspname, other.relname,
CASE WHEN c.relkind = 'p' THEN bad.refused WHEN NOT own.is_identified THEN own.refused END
FROM identity own JOIN pg_class c ON c.oid = own.oid
LEFT JOIN {members} published ON published.oid = c.oid
LEFT JOIN bad ON bad.root = c.oid LEFT JOIN other ON other.root = c.oid LEFT JOIN outside ON outside.root = c.oid
WHERE own.relkind IN ('r', 'p') AND c.relpersistence <> 't'
AND (NOT c.relispartition OR published.oid IS NOT NULL) ORDER BY 1, 2
