-- Tables as the catalog has them: OID, and one JSON object each. One description for both who ask: a session (of
-- the tables it names) and the event trigger (of those that a statement concerned). {tables} is an oid[], and
-- {missing_bytes_max} how many bytes of `missing` a table's columns may have in all: beyond, it is left out. Comments
-- and defaults are cut at 10,000 characters. {in_schema} is empty for a server older than FOR TABLES IN SCHEMA. No table is
-- locked.
--
-- What is printed by functions that look at things which others may drop just now (types, functions) would fail, and
-- the statement with it. So of a table that is not {is_locked} nothing is printed but what hangs on the system's own
-- pinned objects alone (their OIDs are below 12,000, and pg_depend does not have them); the rest is left out.
--
-- `missing` is pg_attribute.attmissingval, of a partitioned table that of its partitions: an array of one element whose type is the column's (and may itself be an
-- array), as that element prints: array_out's braces, quotes and backslashes are taken off again.
SELECT c.oid, c.relpersistence AS persistence, json_build_object(
    'oid', c.oid::int8,
    'schema', n.nspname,
    'name', c.relname,
    'persistence', c.relpersistence,
    'identity', c.relreplident,
    'root', nullif(pg_partition_root(c.oid)::oid, c.oid)::int8,
    -- By pg_inherits: pg_partition_tree() would lock every partition.
    'partitions', CASE WHEN c.relkind = 'p' THEN (
        WITH RECURSIVE part(oid) AS (
            SELECT i.inhrelid FROM pg_inherits i WHERE i.inhparent = c.oid AND NOT i.inhdetachpending
            UNION ALL SELECT i.inhrelid FROM part JOIN pg_inherits i ON i.inhparent = part.oid
                WHERE NOT i.inhdetachpending)
        SELECT coalesce(json_agg(part.oid::int8 ORDER BY part.oid), '[]'::json) FROM part) END,
    -- Those that send its rows under its own name. By the catalog: pg_get_publication_tables() would lock them all.
    'publications', (SELECT coalesce(json_agg(p.pubname ORDER BY p.pubname), '[]'::json)
        FROM pg_publication p, LATERAL (
            SELECT bool_or(m.is_in) FILTER (WHERE m.oid = c.oid) AS own, bool_or(m.is_in AND m.oid <> c.oid) AS above
            FROM (SELECT a.oid, p.puballtables
                    OR EXISTS (SELECT FROM pg_publication_rel r WHERE r.prpubid = p.oid AND r.prrelid = a.oid)
                    {in_schema} AS is_in
                FROM (SELECT c.oid UNION SELECT ancestor::oid FROM pg_partition_ancestors(c.oid) AS ancestor) l
                JOIN pg_class a ON a.oid = l.oid) m) has
        WHERE c.relpersistence = 'p'
            AND CASE WHEN p.pubviaroot THEN has.own AND NOT has.above ELSE c.relkind = 'r' AND (has.own OR has.above) END),
    'comment', (SELECT left(d.description, 10000) FROM pg_description d
        WHERE d.objoid = c.oid AND d.classoid = 'pg_class'::regclass AND d.objsubid = 0),
    'columns', (SELECT coalesce(json_agg(json_build_object(
            'number', a.attnum,
            'name', a.attname,
            'type', a.atttypid::int8,
            'modifier', a.atttypmod,
            'type_name', format_type(a.atttypid, a.atttypmod),
            'not_null', a.attnotnull,
            'generated', a.attgenerated,
            -- Without the table's OID, which would lock it: a default names no columns.
            'has_default', a.atthasdef AND a.attgenerated = '',
            'default', (SELECT left(pg_get_expr(d.adbin, 0), 10000) FROM pg_attrdef d
                WHERE d.adrelid = c.oid AND d.adnum = a.attnum AND a.attgenerated = '' AND ({is_locked} OR NOT EXISTS (
                    SELECT FROM pg_depend f WHERE f.classid = 'pg_attrdef'::regclass AND f.objid = d.oid
                        AND f.refclassid <> 'pg_class'::regclass))),
            'has_missing', a.has_missing,
            'missing', CASE WHEN a.bytes <= {missing_bytes_max} THEN CASE
                WHEN substr(a.missing, 2, 1) = '"'
                THEN regexp_replace(substr(a.missing, 3, length(a.missing) - 4), E'[\\\\](.)', E'\\1', 'g')
                ELSE substr(a.missing, 2, length(a.missing) - 2) END END,
            'comment', (SELECT left(d.description, 10000) FROM pg_description d
                WHERE d.objoid = c.oid AND d.classoid = 'pg_class'::regclass AND d.objsubid = a.attnum)
        ) ORDER BY a.attnum), '[]'::json)
        FROM (SELECT a.*, held.missing, held.attname IS NOT NULL AS has_missing,
                sum(octet_length(held.missing)) OVER (ORDER BY a.attnum) AS bytes
            -- A partitioned table has none itself: its partitions do, and where they differ none is told. They are walked
            -- once for all columns.
            FROM pg_attribute a LEFT JOIN (
                WITH RECURSIVE part(oid) AS (
                    SELECT c.oid UNION ALL SELECT i.inhrelid FROM part JOIN pg_inherits i ON i.inhparent = part.oid
                        WHERE c.relkind = 'p' AND NOT i.inhdetachpending)
                SELECT own.attname, CASE WHEN count(DISTINCT print.value) = 1 THEN min(print.value) END AS missing
                FROM part JOIN pg_attribute own ON own.attrelid = part.oid, LATERAL (
                    SELECT CASE WHEN {is_locked} OR own.atttypid < 12000 THEN own.attmissingval::text END AS value) print
                WHERE own.atthasmissing AND NOT own.attisdropped
                GROUP BY own.attname) held ON held.attname = a.attname
            WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped) a),
    -- Every type that the columns' types consist of, but for the system's plain ones. A real array is the one which
    -- its element names as its array; others (point, int2vector) only have parts.
    'types', (SELECT coalesce(json_agg(json_build_object(
            'oid', t.oid::int8,
            'name', t.typname,
            'kind', t.typtype,
            'base', t.typbasetype::int8,
            'modifier', t.typtypmod,
            'element', CASE WHEN e.typarray = t.oid AND e.typdelim = ',' THEN e.oid::int8 END,
            'labels', (SELECT json_agg(l.enumlabel ORDER BY l.enumsortorder) FROM pg_enum l WHERE l.enumtypid = t.oid)
        ) ORDER BY t.oid), '[]'::json)
        FROM pg_type t LEFT JOIN pg_type e ON e.oid = t.typelem
        WHERE (t.oid >= 10000 OR t.typelem <> 0) AND t.oid IN (
            WITH RECURSIVE used(oid) AS (
                SELECT a.atttypid FROM pg_attribute a
                WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
                UNION SELECT part.oid FROM used JOIN pg_type u ON u.oid = used.oid,
                    LATERAL (VALUES (u.typbasetype), (u.typelem)) AS part(oid) WHERE part.oid <> 0)
            SELECT used.oid FROM used)),
    -- Indexes that can identify a row.
    'keys', (SELECT coalesce(json_agg(json_build_object(
            'primary', i.indisprimary,
            'identity', i.indisreplident,
            'columns', (i.indkey::int2[])[0:i.indnkeyatts - 1])), '[]'::json)
        FROM pg_index i
        WHERE i.indrelid = c.oid AND (i.indisprimary OR i.indisreplident) AND i.indisvalid AND i.indisunique
            AND i.indimmediate AND i.indpred IS NULL AND i.indexprs IS NULL)
) AS description
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.oid = ANY ({tables}) AND c.relkind IN ('r', 'p')
ORDER BY c.oid
