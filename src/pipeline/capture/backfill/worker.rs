//! One session of a round: opens tables, and reads pieces of them.
//!
//! Everything goes through a channel of a few pieces: a session that is busy makes the server wait, and nothing is
//! held but those pieces.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use tokio::sync::oneshot;

use super::copy::{copy_out, lock_as_it_was};
use super::copying::RowEncoder;
use super::event::{CopyEvent, Go, Ready, Rows};
use super::range::Range;
use super::round::{Opened, Shared, Work};
use crate::change::{Lsn, TableSchema};
use crate::postgres::wire::{Client, Session};
use crate::runtime::{Error, Result};

use super::super::publication::Standing;

/// Prefix of the logical message which shows that the stream has come as far as a lock.
pub const PASS_PREFIX: &str = "tidemark.backfill";

/// Of the buffer of rows that were told, so much is kept for the next ones.
const ROWS_BYTES_KEPT: usize = 1 << 20;

/// How a table was left.
enum Left {
    /// Nothing of it is left for this session.
    Done,
    /// It is another one than when the round was planned, or the writer does not want it.
    Changed,
    /// It could not be opened in time: another session has it locked, or the stream is far behind.
    Unopened,
    /// In the midst of a piece.
    Late,
}

/// Reads until nothing is left. An error is of the session, and ends it. Cancel-safe: all it leaves behind is a
/// connection that closes, with its lock.
pub async fn read(shared: Arc<Shared>) -> Result<()> {
    let mut sql = Client::connect(&shared.settings.connect, Session::Sql).await?;
    while let Some(work) = shared.open_next() {
        work.openers.fetch_add(1, Ordering::Relaxed);
        let left = table(&shared, &mut sql, work).await;
        work.openers.fetch_sub(1, Ordering::Relaxed);
        match left {
            Ok(Left::Done) => sql.execute("COMMIT").await?,
            Ok(Left::Changed) => {
                work.stopped.store(true, Ordering::Relaxed);
                sql.execute("ROLLBACK").await?;
            }
            Ok(left @ (Left::Unopened | Left::Late)) => {
                work.over.store(true, Ordering::Relaxed);
                if matches!(left, Left::Late) {
                    tell(&shared, CopyEvent::Late(Arc::clone(&work.topic))).await?;
                }
                sql = Client::connect(&shared.settings.connect, Session::Sql).await?;
            }
            Err(error) => {
                work.stopped.store(true, Ordering::Relaxed);
                // A session that still answers has not caused it.
                let of_session = sql.execute("ROLLBACK").await.is_err();
                tell(&shared, CopyEvent::Failed(Arc::clone(&work.topic), error)).await?;
                if of_session {
                    sql = Client::connect(&shared.settings.connect, Session::Sql).await?;
                }
            }
        }
    }
    Ok(())
}

async fn table(shared: &Shared, sql: &mut Client, work: &Work) -> Result<Left> {
    let opened = tokio::time::timeout_at(shared.end, open(shared, sql, work)).await;
    let Ok(opened) = opened else { return Ok(Left::Unopened) };
    let Some(mut opened) = opened? else { return Ok(Left::Changed) };
    let Opened { schema, encoder } = &mut opened;
    let key: Vec<String> = key_of(schema);
    let at_once = work.at_once.load(Ordering::Relaxed);
    while (at_once || shared.goes_on()) && !shared.has_stopped(work) {
        let Some(piece) = work.next(sql, &key).await? else {
            work.over.store(true, Ordering::Relaxed);
            return Ok(Left::Done);
        };
        let read = read_piece(shared, sql, work, schema, encoder, &piece);
        let read = if at_once {
            read.await
        } else {
            match tokio::time::timeout_at(shared.end, read).await {
                Ok(read) => read,
                Err(_) => return Ok(Left::Late),
            }
        };
        read?;
    }
    Ok(Left::Done)
}

/// Names of the key's columns at the source.
fn key_of(schema: &TableSchema) -> Vec<String> {
    schema.key_columns().map(|column| column.source_name().to_owned()).collect()
}

/// Opens a table: from here on it keeps its shape and may be read. None: it is another one by now.
async fn open(shared: &Shared, sql: &mut Client, work: &Work) -> Result<Option<Opened>> {
    sql.execute(&shared.begin).await?;
    if !lock_as_it_was(sql, &work.wanted).await? {
        return Ok(None);
    }
    let Some(schema) = shared.asking.shape(work).await? else { return Ok(None) };
    // Other sessions wait until the first has an answer.
    let mut opened = work.opened.lock().await;
    if let Some(known) = &*opened {
        return Ok((known.schema == schema).then(|| known.clone()));
    }
    let Some(Go { keys: moved, encoder }) = first(shared, work, &schema).await? else { return Ok(None) };
    let mut pending = work.pending.lock().await;
    if !moved.is_empty() {
        pending.left.push_front(Range::Rows { keys: moved });
    }
    if pending.left.is_empty() {
        // All was read, and the process died before the copy was told as whole.
        tell(shared, CopyEvent::Read(Arc::clone(&work.topic), Vec::new())).await?;
    }
    drop(pending);
    Ok(Some(opened.insert(Opened { schema, encoder }).clone()))
}

/// Tells of a table, and waits until its rows may come. None: they may not.
async fn first(shared: &Shared, work: &Work, schema: &TableSchema) -> Result<Option<Go>> {
    let key = key_of(schema);
    let by_key = shared.asking.is_comparable(work, &key).await?;
    work.at_once.store(work.is_at_once(&key, by_key), Ordering::Relaxed);
    let (begins, left) = work.begin(&key);
    work.pending.lock().await.left = left.iter().cloned().collect();
    let pass =
        if shared.waits { shared.asking.leave_mark(&work.wanted.name.to_string()).await? } else { Lsn::ZERO };
    let (go, gone) = oneshot::channel();
    let ready = Ready {
        topic: Arc::clone(&work.topic),
        lsn: shared.lsn,
        timeline: shared.timeline,
        commit_us: shared.commit_us,
        schema: schema.clone(),
        standing: Standing::from(&work.wanted.published),
        storage: work.wanted.storage.clone(),
        condition: work.wanted.published.condition(),
        key,
        begins,
        left,
        pass,
        rows_estimated: work.wanted.rows_estimated,
        go,
    };
    tell(shared, CopyEvent::Ready(Box::new(ready))).await?;
    Ok(gone.await.ok())
}

async fn read_piece(
    shared: &Shared,
    sql: &mut Client,
    work: &Work,
    schema: &TableSchema,
    encoder: &mut RowEncoder,
    piece: &Range,
) -> Result<()> {
    let condition = piece.condition(&key_of(schema));
    let mut rows = copy_out(sql, &work.wanted, schema, condition.as_deref()).await?;
    let (mut count, mut bytes) = (0, 0);
    let mut some = Rows::default();
    loop {
        let ended = match rows.next().await? {
            Some(row) => {
                some.push(row);
                false
            }
            None => true,
        };
        if some.bytes() >= encoder.rows_bytes() || (ended && some.len() > 0) {
            let (rows, size) = (some.len() as u64, some.bytes() as u64);
            (count, bytes) = (count + rows, bytes + size);
            tell_rows(shared, work, encoder, &some).await?;
            some.clear(ROWS_BYTES_KEPT);
            shared.rate.took(size).await;
        }
        if ended {
            break;
        }
    }
    work.measured(count, bytes);
    // Told in the order in which pieces end, so that what is left only becomes less.
    let mut pending = work.pending.lock().await;
    let left = pending.read(piece);
    tell(shared, CopyEvent::Read(Arc::clone(&work.topic), left)).await
}

/// Encodes rows and tells them. Cancel-safe: from the moment they have numbers on nothing waits.
async fn tell_rows(shared: &Shared, work: &Work, encoder: &mut RowEncoder, rows: &Rows) -> Result<()> {
    let place = shared.events.reserve().await.map_err(|_| nobody_waits())?;
    let (encoded, coming) = oneshot::channel();
    let first = encoder.ordinals.take(rows.len() as u64, || {
        place.send(CopyEvent::Coming(Arc::clone(&work.topic), coming));
    });
    // Whoever waits for them may have left, which the next one who tells is told.
    let _ = encoded.send(Box::new(encoder.encode(rows, first)?));
    Ok(())
}

async fn tell(shared: &Shared, event: CopyEvent) -> Result<()> {
    shared.events.send(event).await.map_err(|_| nobody_waits())
}

fn nobody_waits() -> Error {
    Error::retry("nobody waits for the copy any more")
}
