-- Tidemark's event triggers: a statement that concerns a table leaves a logical message in the WAL.
--
-- Nothing is written to but the WAL, and nothing here may ever fail, since then the statement would: it takes no right
-- of whoever runs it (SECURITY DEFINER), asks pg_catalog alone, takes no lock on a table, and cuts what has no bounded
-- size. There is no EXCEPTION block: it would be a subtransaction. After an upgrade of the server to a major which this
-- has never been tried on it does nothing.
-- Nothing is sent from a session with SET tidemark.ddl = off, or with session_replication_role = replica.
CREATE SCHEMA IF NOT EXISTS tidemark;
COMMENT ON SCHEMA tidemark IS 'Tidemark tells its change stream of DDL. Away again: tidemark setup --uninstall';
CREATE OR REPLACE FUNCTION tidemark.ddl() RETURNS event_trigger LANGUAGE plpgsql SECURITY DEFINER
{settings}
AS $tidemark$
-- version {version}
#variable_conflict use_column
DECLARE
    concerned oid[];
    -- Of these, the ones that the statement itself has locked: nobody alters them, or drops what they are made of.
    locked oid[];
    created text := '[]';
    dropped text := '[]';
    rewritten text := '[]';
    query text := current_query();
    head text;
    described text;
    part text := '';
BEGIN
    IF lower(current_setting('tidemark.ddl', true)) IN ('off', 'false', 'no', '0')
        OR current_setting('server_version_num')::int NOT BETWEEN {server_min} AND {server_max}
    THEN
        RETURN;
    END IF;
    IF tg_event = 'table_rewrite' THEN
        SELECT array_agg(c.oid), json_agg(json_build_object('oid', c.oid::int8,
                'reason', pg_event_trigger_table_rewrite_reason()))::text
            INTO concerned, rewritten FROM pg_class c
            WHERE c.oid = pg_event_trigger_table_rewrite_oid() AND c.relpersistence <> 't';
        locked := concerned;
    ELSIF tg_event = 'sql_drop' THEN
        SELECT json_agg(json_build_object('oid', o.objid::int8, 'kind', o.object_type, 'schema', o.address_names[1],
                'name', o.address_names[2], 'column', o.address_names[3], 'number', nullif(o.objsubid, 0)))::text
            INTO dropped FROM pg_event_trigger_dropped_objects() o
            WHERE o.object_type IN ('table', 'table column') AND NOT o.is_temporary;
        -- Tables that stay, without a column or a key.
        SELECT array_agg(t.oid) INTO concerned FROM (
            SELECT o.objid FROM pg_event_trigger_dropped_objects() o
                WHERE o.object_type = 'table column' AND NOT o.is_temporary
            UNION SELECT c.oid FROM pg_event_trigger_dropped_objects() o
                JOIN pg_namespace n ON n.nspname = o.address_names[1]
                JOIN pg_class c ON c.relnamespace = n.oid AND c.relname = o.address_names[2]
                WHERE o.object_type = 'table constraint' AND NOT o.is_temporary) t(oid);
        locked := concerned;
    ELSIF EXISTS (SELECT FROM pg_event_trigger_ddl_commands() d WHERE d.schema_name IS DISTINCT FROM 'pg_temp') THEN
        WITH RECURSIVE command AS (
            SELECT d.classid, d.objid, d.command_tag FROM pg_event_trigger_ddl_commands() d
            WHERE d.objid IS NOT NULL AND d.schema_name IS DISTINCT FROM 'pg_temp'
        ), changed AS (
            SELECT command.classid, command.objid FROM command WHERE command.command_tag <> 'COMMENT'
            UNION SELECT d.classid, d.objid FROM command JOIN pg_depend d
                ON d.refclassid = command.classid AND d.refobjid = command.objid AND d.deptype = 'e'
                WHERE command.classid = 'pg_extension'::regclass AND command.command_tag = 'ALTER EXTENSION'
            UNION SELECT 'pg_class'::regclass, c.oid FROM command JOIN pg_class c ON c.relnamespace = command.objid
                WHERE command.classid = 'pg_namespace'::regclass AND command.command_tag = 'ALTER SCHEMA'
            UNION SELECT 'pg_type'::regclass, t.oid FROM command JOIN pg_type t ON t.typnamespace = command.objid
                WHERE command.classid = 'pg_namespace'::regclass AND command.command_tag = 'ALTER SCHEMA'
        ), made_of(oid) AS (
            -- The types among it, row types too, and every type that is made of them: array, domain, composite, range.
            SELECT changed.objid FROM changed WHERE changed.classid = 'pg_type'::regclass
            UNION SELECT c.reltype FROM changed JOIN pg_class c ON c.oid = changed.objid
                WHERE changed.classid = 'pg_class'::regclass AND c.reltype <> 0
            UNION SELECT CASE WHEN d.classid = 'pg_type'::regclass THEN d.objid ELSE c.reltype END
                FROM made_of JOIN pg_depend d ON d.refclassid = 'pg_type'::regclass AND d.refobjid = made_of.oid
                LEFT JOIN pg_class c ON d.classid = 'pg_class'::regclass AND d.objsubid > 0 AND c.oid = d.objid
                WHERE d.classid = 'pg_type'::regclass OR c.reltype <> 0
        ), own(oid) AS (
            SELECT command.objid FROM command WHERE command.classid = 'pg_class'::regclass
            UNION SELECT changed.objid FROM changed WHERE changed.classid = 'pg_class'::regclass
            UNION SELECT d.objid FROM made_of JOIN pg_depend d ON d.refclassid = 'pg_type'::regclass
                AND d.refobjid = made_of.oid AND d.classid = 'pg_class'::regclass AND d.objsubid > 0
            -- What a parent is given its children get, too; partitions only count where they are published as such.
            UNION SELECT c.oid FROM own JOIN pg_inherits i ON i.inhparent = own.oid JOIN pg_class c ON c.oid = i.inhrelid
                WHERE NOT c.relispartition OR EXISTS (SELECT FROM pg_publication p WHERE NOT p.pubviaroot)
        )
        SELECT array_agg(c.oid) INTO concerned
            FROM (SELECT own.oid FROM own UNION SELECT pg_partition_root(own.oid)::oid FROM own) t
            JOIN pg_class c ON c.oid = t.oid WHERE c.relkind IN ('r', 'p') AND c.relpersistence <> 't';
        SELECT array_agg(d.objid) INTO locked FROM pg_event_trigger_ddl_commands() d
            WHERE d.classid = 'pg_class'::regclass;
        SELECT coalesce(json_agg(d.objid::int8), '[]')::text INTO created FROM pg_event_trigger_ddl_commands() d
            WHERE d.classid = 'pg_class'::regclass AND d.objid = ANY (concerned)
                AND d.command_tag IN ('CREATE TABLE', 'CREATE TABLE AS', 'SELECT INTO');
    END IF;
    dropped := coalesce(dropped, '[]');
    IF concerned IS NULL AND dropped = '[]' THEN
        RETURN;
    END IF;

    IF getdatabaseencoding() NOT IN ('UTF8', 'SQL_ASCII', 'LATIN1') THEN
        -- Theirs are characters that UTF-8 does not have.
        query := regexp_replace(query, E'[^\\x01-\\x7f]', '?', 'g');
    END IF;
    head := left(json_build_object('version', {version}, 'event', tg_event, 'tag', tg_tag,
        'statement', left(query, 100000))::text, -1);
    FOR described IN SELECT t.description::text FROM (
{describe}) t WHERE t.persistence <> 't'
    LOOP
        IF part <> '' AND octet_length(part) + octet_length(described) > 1000000 THEN
            PERFORM {emit};
            part := '';
            dropped := '[]';
        END IF;
        part := concat_ws(',', nullif(part, ''), described);
    END LOOP;
    IF part <> '' OR dropped <> '[]' OR rewritten <> '[]' THEN
        PERFORM {emit};
    END IF;
END
$tidemark$;
DROP EVENT TRIGGER IF EXISTS tidemark_ddl_command_end;
CREATE EVENT TRIGGER tidemark_ddl_command_end ON ddl_command_end
    WHEN TAG IN ('ALTER DOMAIN', 'ALTER EXTENSION', 'ALTER INDEX', 'ALTER SCHEMA', 'ALTER TABLE', 'ALTER TYPE', 'COMMENT',
        'CREATE SCHEMA', 'CREATE TABLE', 'CREATE TABLE AS', 'SELECT INTO')
    EXECUTE FUNCTION tidemark.ddl();
DROP EVENT TRIGGER IF EXISTS tidemark_sql_drop;
CREATE EVENT TRIGGER tidemark_sql_drop ON sql_drop EXECUTE FUNCTION tidemark.ddl();
DROP EVENT TRIGGER IF EXISTS tidemark_table_rewrite;
CREATE EVENT TRIGGER tidemark_table_rewrite ON table_rewrite EXECUTE FUNCTION tidemark.ddl()
