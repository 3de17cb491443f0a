//! Filters, as every reader's SQL has them, on a table of several pages and groups of rows: what statistics, page indexes
//! and bloom filters let a reader skip is never a row that it was asked for.

/// Rows in the order of their ids but for `name`; nulls, empty texts, NaN.
pub const TABLE: &str = r#"CREATE TABLE filtered (
    id int PRIMARY KEY, since timestamptz, local timestamp, day date, amount numeric(12,2), wide numeric(30,5),
    name text COLLATE "C", score float8, flag boolean);
    INSERT INTO filtered SELECT i,
        CASE WHEN i % 11 > 0 THEN timestamptz '2026-01-01 00:00:00+00' + i * interval '7.000001 seconds' END,
        timestamp '1960-01-01' + i * interval '5 hours 0.25 seconds',
        date '1500-01-01' + i * 3,
        CASE WHEN i % 10 > 0 THEN (i - 30000) / 100.0 END,
        i * 1000000000000.00001,
        CASE i % 7 WHEN 0 THEN NULL WHEN 1 THEN '' ELSE 'n-' || (i * 7919) % 60000 END,
        CASE WHEN i % 1000 = 0 THEN 'NaN' WHEN i < 30000 THEN i / 8.0 END,
        i % 3 = 0
    FROM generate_series(1, 60000) i"#;

/// What is asked; each finds some rows, and not all.
pub const FILTERS: &[&str] = &[
    "id = 31234",
    "id IN (1, 29999, 60000, 60001)",
    "id BETWEEN 9998 AND 10003",
    "id >= 59990",
    "since = TIMESTAMP '2026-01-01 00:00:07.000001'",
    "since < TIMESTAMP '2026-01-01 00:00:07.000002'",
    "since > TIMESTAMP '2026-01-05 20:37:00' AND since < TIMESTAMP '2026-01-05 20:38:00'",
    "since IS NULL AND id < 100",
    "local <= TIMESTAMP '1960-01-02 12:00:00'",
    "local BETWEEN TIMESTAMP '1969-12-30 00:00:00' AND TIMESTAMP '1970-01-02 00:00:00'",
    "day < DATE '1500-02-28'",
    "day BETWEEN DATE '1582-10-25' AND DATE '1582-10-31'",
    "amount = 0.01",
    "amount > 299.90",
    "amount >= -0.05 AND amount <= 0.05",
    "amount IS NULL AND id > 59950",
    "wide = 30000000000000000.30000",
    "wide > 59999000000000000.00000",
    "name = ''  AND id < 100",
    "name IS NULL AND id > 59900",
    "name = 'n-23757'",
    "name = 'n-15838'",
    "name > 'n-998'",
    "name LIKE 'n-599%'",
    "name IS NOT NULL AND name < 'n-1001'",
    "score = 0.25",
    "score < 1.5",
    "score BETWEEN 1249.5 AND 1250.5",
    "flag AND id < 10",
    "NOT flag AND id > 59995",
];
