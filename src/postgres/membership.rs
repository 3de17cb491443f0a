//! Which tables a publication publishes, in SQL that waits for nobody who has one of them locked.
//!
//! The view `pg_publication_tables` says the same. But the function behind it opens every table, since 16 also those
//! without a column list (`pg_get_publication_tables` in `src/backend/catalog/pg_publication.c`), and so it waits for an
//! `ALTER TABLE` that itself waits behind a long query: one such table would hold up whoever asks about all of them, the
//! cut of a day among others. A row filter can only be printed with its table open; tables without one are not touched.

use super::wire::quote_literal;

/// A subquery in brackets, a row a table of relation kind `r` or `p`: its `oid`; OID of the `publication`; `attrs`, the
/// numbers of the listed columns, null where there is no list; and the `rowfilter`, null where there is none. Without rows
/// when there is no such publication. Unlogged tables are among them as partitions of a published one.
pub fn members_sql(server_version: u32, publication: &str) -> String {
    // Row filters, column lists and schemas came with 15. Where the schema is published, too, those of a table do not count.
    let (attrs, filter, in_schema) = if server_version >= 150_000 {
        let counts = "NOT b.puballtables AND NOT EXISTS (SELECT FROM pg_publication_namespace s \
                      WHERE s.pnpubid = b.oid AND s.pnnspid = c.relnamespace)";
        (
            format!("CASE WHEN {counts} THEN r.prattrs END"),
            format!("CASE WHEN {counts} THEN pg_get_expr(r.prqual, r.prrelid) END"),
            " OR EXISTS (SELECT FROM pg_publication_namespace s WHERE s.pnpubid = b.oid AND s.pnnspid = l.relnamespace)",
        )
    } else {
        ("NULL::int2vector".to_owned(), "NULL::text".to_owned(), "")
    };
    let listed = format!(
        "(EXISTS (SELECT FROM pg_publication_rel m WHERE m.prpubid = b.oid AND m.prrelid = l.oid){in_schema})"
    );
    // OIDs below are the system's own (FirstNormalObjectId).
    format!(
        "(SELECT c.oid, b.oid AS publication, {attrs} AS attrs, {filter} AS rowfilter \
         FROM pg_publication b CROSS JOIN pg_class c \
         LEFT JOIN pg_publication_rel r ON r.prpubid = b.oid AND r.prrelid = c.oid \
         CROSS JOIN LATERAL (SELECT NOT b.puballtables AND {listed} AS listed FROM (SELECT c.oid, c.relnamespace) l) own \
         CROSS JOIN LATERAL (SELECT NOT b.puballtables AND c.relispartition AND (own.listed OR NOT b.pubviaroot) AND EXISTS ( \
           SELECT FROM pg_partition_ancestors(c.oid) AS ancestor JOIN pg_class l ON l.oid = ancestor \
           WHERE l.oid <> c.oid AND {listed}) AS listed) above \
         WHERE b.pubname = {} AND c.relkind IN ('r', 'p') AND c.oid >= 16384 \
           AND (c.relpersistence = 'p' OR above.listed) \
           AND CASE WHEN b.puballtables AND b.pubviaroot THEN NOT c.relispartition \
             WHEN b.pubviaroot THEN own.listed AND NOT above.listed \
             ELSE c.relkind = 'r' AND (b.puballtables OR own.listed OR above.listed) END)",
        quote_literal(publication)
    )
}
