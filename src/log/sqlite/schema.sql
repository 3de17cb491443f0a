-- The embedded log, version 2. Offsets and epochs are unsigned in the product; they never come near 2^63.

CREATE TABLE writer (
    id      INTEGER PRIMARY KEY CHECK (id = 1),
    epoch   INTEGER NOT NULL,   -- of the one writer
    appends INTEGER NOT NULL    -- grows by one with each append
) STRICT;
INSERT INTO writer VALUES (1, 0, 0);

CREATE TABLE state (
    key   TEXT PRIMARY KEY,
    value BLOB NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE partitions (
    id               INTEGER PRIMARY KEY,
    topic            TEXT NOT NULL UNIQUE,
    start_offset     INTEGER NOT NULL DEFAULT 0,  -- of the first batch
    delivered_offset INTEGER NOT NULL DEFAULT 0,  -- up to here retention may delete
    end_offset       INTEGER NOT NULL DEFAULT 0,  -- up to here readers read
    delivered_bytes  INTEGER NOT NULL DEFAULT 0,  -- stored bytes of batches wholly below delivered_offset
    CHECK (start_offset <= delivered_offset AND delivered_offset <= end_offset)
) STRICT;

CREATE TABLE batches (
    id           INTEGER PRIMARY KEY,
    partition_id INTEGER NOT NULL,
    first_offset INTEGER NOT NULL,
    count        INTEGER NOT NULL,  -- records, with offsets first_offset ..
    appended_ms  INTEGER NOT NULL,  -- wall clock, milliseconds since 1970
    stored_bytes INTEGER NOT NULL,  -- length of blob
    frames_bytes INTEGER NOT NULL,  -- length of the frames that it unpacks to
    codec        INTEGER NOT NULL,  -- 0: as they are, 1: LZ4 in runs of 64 KiB
    crc          INTEGER NOT NULL,  -- CRC-32 of blob, codec i64, count u32, frames_bytes u64, little-endian
    blob         BLOB NOT NULL
) STRICT;
CREATE UNIQUE INDEX batches_by_offset ON batches (partition_id, first_offset);
