//! A server that streams, made up at random: what the spool replays is what protocol 1 would have sent.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::*;
use crate::postgres::pgoutput::{Message, Relation, decode};

/// A change as the server has it in its queue.
#[derive(Clone, Debug)]
struct Queued {
    of: u32,
    lsn: u64,
    table: u32,
    is_message: bool,
}

/// A transaction on the server.
#[derive(Debug, Default)]
struct Transaction {
    xid: u32,
    /// Everything that has not been rolled back, in the order of the WAL.
    live: Vec<Queued>,
    /// What has not been streamed.
    queue: Vec<Queued>,
    is_streamed: bool,
    /// Open subtransactions, the innermost last; each with those that were released into it.
    stack: Vec<Vec<u32>>,
    /// Subtransactions that have been streamed.
    streamed: BTreeSet<u32>,
    prepared: bool,
}

impl Transaction {
    fn innermost(&self) -> u32 {
        self.stack.last().map_or(self.xid, |nest| nest[0])
    }
}

/// pgoutput's rules, and what it would have sent by protocol 1.
#[derive(Debug, Default)]
struct Server {
    now: u64,
    ids: u32,
    open: Vec<Transaction>,
    /// Columns of each table as they are.
    shapes: BTreeMap<u32, u16>,
    /// Tables whose description everybody knows, and the transactions that were sent it in parts.
    known: BTreeSet<u32>,
    known_in: BTreeSet<(u32, u32)>,
    wire: Vec<(Vec<u8>, u64)>,
    /// For each transaction that committed: its id, its commit, its changes.
    expected: Vec<(u32, u64, Vec<u64>)>,
    /// Transactions with a message.
    doubtful: BTreeSet<u32>,
    two_phase: bool,
}

impl Server {
    fn lsn(&mut self) -> u64 {
        self.now += 8;
        self.now
    }

    fn send(&mut self, parts: &[&[u8]], lsn: u64) {
        self.wire.push((parts.concat(), lsn));
    }

    fn begin(&mut self) {
        self.ids += 1;
        let xid = self.ids;
        self.open.push(Transaction { xid, ..Transaction::default() });
    }

    fn change(&mut self, at: usize, table: u32, is_message: bool) {
        let lsn = self.lsn();
        let transaction = &mut self.open[at];
        let change = Queued { of: transaction.innermost(), lsn, table, is_message };
        transaction.live.push(change.clone());
        transaction.queue.push(change);
    }

    fn savepoint(&mut self, at: usize) {
        self.ids += 1;
        self.open[at].stack.push(vec![self.ids]);
    }

    fn release(&mut self, at: usize) {
        let transaction = &mut self.open[at];
        let Some(nest) = transaction.stack.pop() else { return };
        if let Some(outer) = transaction.stack.last_mut() {
            outer.extend(nest);
        }
    }

    fn rollback_to(&mut self, at: usize) {
        let transaction = &mut self.open[at];
        let Some(mut nest) = transaction.stack.pop() else { return };
        // Its own subtransactions are told first.
        nest.reverse();
        transaction.live.retain(|change| !nest.contains(&change.of));
        transaction.queue.retain(|change| !nest.contains(&change.of));
        let xid = transaction.xid;
        let told: Vec<u32> = nest.into_iter().filter(|of| transaction.streamed.remove(of)).collect();
        for of in told {
            self.send(&[b"A", &xid.to_be_bytes(), &of.to_be_bytes()], 0);
            self.known_in.retain(|(_, in_xid)| *in_xid != xid);
        }
    }

    fn describe(&mut self, table: u32, id: &[u8]) {
        let mut bytes = [&b"R"[..], id, &table.to_be_bytes(), b"public\0t\0d"].concat();
        let columns = self.shapes[&table];
        bytes.extend_from_slice(&columns.to_be_bytes());
        for _ in 0..columns {
            bytes.extend_from_slice(b"\0c\0\0\0\0\x17\xff\xff\xff\xff");
        }
        self.wire.push((bytes, 0));
    }

    /// A change, after the table's description if it has to be sent; `within`: the transaction that is streamed.
    fn row(&mut self, change: &Queued, within: Option<u32>) {
        let (of, top) = (change.of.to_be_bytes(), within.unwrap_or_default().to_be_bytes());
        let (id, top): (&[u8], &[u8]) = if within.is_some() { (&of, &top) } else { (b"", b"") };
        if change.is_message {
            // Of whichever subtransaction: it has the id of the one at the top.
            self.send(&[b"M", top, b"\x01", &change.lsn.to_be_bytes(), b"p\0\0\0\0\0"], change.lsn);
            return;
        }
        let table = change.table;
        let is_new = match within {
            Some(xid) => self.known_in.insert((table, xid)),
            None => self.known.insert(table),
        };
        if is_new {
            self.describe(table, id);
        }
        let columns = self.shapes[&table];
        let tuple = [&columns.to_be_bytes()[..], &vec![b'n'; columns.into()]].concat();
        self.send(&[b"I", id, &table.to_be_bytes(), b"N", &tuple], change.lsn);
    }

    fn stream(&mut self, at: usize) {
        let transaction = &mut self.open[at];
        if transaction.prepared {
            return;
        }
        let (xid, first) = (transaction.xid, !transaction.is_streamed);
        transaction.is_streamed = true;
        let queue = std::mem::take(&mut transaction.queue);
        transaction.streamed.extend(queue.iter().map(|change| change.of).filter(|of| *of != xid));
        self.send(&[b"S", &xid.to_be_bytes(), &[u8::from(first)]], 0);
        for change in queue {
            self.row(&change, Some(xid));
        }
        self.send(&[b"E"], 0);
    }

    fn whole(&mut self, at: usize) {
        for change in std::mem::take(&mut self.open[at].queue) {
            self.row(&change, None);
        }
    }

    fn prepare(&mut self, at: usize) {
        if self.open[at].prepared || !self.two_phase {
            return;
        }
        let (xid, lsn) = (self.open[at].xid, self.lsn().to_be_bytes());
        let end = [&lsn[..], &lsn, &[0; 8], &xid.to_be_bytes(), b"g\0"].concat();
        self.open[at].stack.clear();
        if self.open[at].is_streamed {
            self.stream(at);
            self.send(&[b"p\0", &end], 0);
        } else {
            self.send(&[b"b", &end], 0);
            self.whole(at);
            self.send(&[b"P\0", &end], 0);
        }
        self.open[at].prepared = true;
    }

    fn commit(&mut self, at: usize) {
        let (xid, is_streamed) = (self.open[at].xid, self.open[at].is_streamed);
        let commit = self.lsn();
        let lsn = commit.to_be_bytes();
        let ends = [&lsn[..], &(commit + 1).to_be_bytes(), &[0; 8]].concat();
        if self.open[at].prepared {
            self.send(&[b"K\0", &ends, &xid.to_be_bytes(), b"g\0"], 0);
        } else if is_streamed {
            self.stream(at);
            self.send(&[b"c", &xid.to_be_bytes(), b"\0", &ends], 0);
        } else {
            self.send(&[b"B", &lsn, &[0; 8], &xid.to_be_bytes()], 0);
            self.whole(at);
            self.send(&[b"C\0", &ends], 0);
        }
        for table in self.shapes.keys() {
            if self.known_in.remove(&(*table, xid)) && !self.open[at].prepared {
                self.known.insert(*table);
            }
        }
        let changes = self.open.remove(at).live.iter().map(|change| change.lsn).collect();
        self.expected.push((xid, commit, changes));
    }

    fn rollback(&mut self, at: usize) {
        while !self.open[at].stack.is_empty() && !self.open[at].prepared {
            self.rollback_to(at);
        }
        let transaction = self.open.remove(at);
        let xid = transaction.xid.to_be_bytes();
        if transaction.prepared {
            self.send(&[b"r\0", &[0; 32], &xid, b"g\0"], 0);
        } else if transaction.is_streamed {
            self.send(&[b"A", &xid, &xid], 0);
        }
        self.known_in.retain(|(_, in_xid)| *in_xid != transaction.xid);
    }

    /// A column list changes: everything has to be described again.
    fn reshape(&mut self, table: u32, columns: u16) {
        self.shapes.insert(table, columns);
        self.known.remove(&table);
        self.known_in.retain(|(of, _)| *of != table);
    }

    fn step(&mut self, (what, which, table): (u8, u8, u8)) {
        let table = u32::from(table % 2) + 16_384;
        if self.open.is_empty() || (what == 0 && self.open.len() < 4) {
            return self.begin();
        }
        let at = usize::from(which) % self.open.len();
        let ended = self.open[at].prepared;
        match what {
            1..=7 if !ended => self.change(at, table, false),
            8 if !ended => {
                let xid = self.open[at].xid;
                self.doubtful.insert(xid);
                self.change(at, table, true);
            }
            9..=11 if !ended => self.savepoint(at),
            12 if !ended => self.release(at),
            13 | 14 if !ended => self.rollback_to(at),
            15..=18 => self.stream(at),
            19 => self.prepare(at),
            20 | 21 => self.commit(at),
            22 => self.rollback(at),
            _ => self.reshape(table, u16::from(which) + 1),
        }
    }
}

/// What comes out: transactions with the LSNs of their changes, up to the commit of one that is refused.
#[derive(Debug, Default)]
struct Output {
    committed: Vec<(u32, u64, Vec<u64>)>,
    refused: Option<u64>,
    described: BTreeMap<u32, Relation>,
}

impl Output {
    fn take(&mut self, message: Message<'_>, lsn: Lsn) {
        match message {
            Message::Begin { commit_lsn, xid, .. } => self.committed.push((xid, commit_lsn.0, Vec::new())),
            Message::Commit { commit_lsn, .. } => {
                assert_eq!(self.committed.last().map(|last| last.1), Some(commit_lsn.0));
            }
            Message::Relation(relation) => {
                self.described.insert(relation.oid, relation);
            }
            Message::Insert { relation, new } => {
                assert_eq!(
                    self.described[&relation].columns.len(),
                    new.len(),
                    "the shape of {relation} at {lsn}"
                );
                self.committed.last_mut().unwrap().2.push(lsn.0);
            }
            Message::Logical { .. } => self.committed.last_mut().unwrap().2.push(lsn.0),
            other => panic!("{other:?}"),
        }
    }
}

async fn through(wire: &[(Vec<u8>, u64)], folder: &Path, two_phase: bool) -> Output {
    let mut spool = Spool::new(folder, 1 << 30, Lsn(0), two_phase);
    let mut output = Output::default();
    for (bytes, lsn) in wire {
        match spool.take(bytes, Lsn(*lsn)).unwrap() {
            Taken::Now => {
                let within_block = spool.block.is_some();
                match decode(bytes).unwrap() {
                    Message::Relation(relation) => output.take(Message::Relation(relation), Lsn(*lsn)),
                    _ if within_block => panic!("{bytes:?} is not kept"),
                    message => output.take(message, Lsn(*lsn)),
                }
            }
            Taken::Kept => {}
            Taken::Flush => spool.flush().await.unwrap(),
            Taken::Refused(_) => {
                let commit = bytes[if bytes[0] == b'c' { 6..14 } else { 2..10 }].try_into().unwrap();
                output.refused = Some(u64::from_be_bytes(commit));
                break;
            }
            Taken::Committed(mut replay) => loop {
                match replay.next(&mut spool) {
                    Replayed::Fill => replay.fill().await.unwrap(),
                    Replayed::Boundary(message, lsn) => output.take(message, lsn),
                    Replayed::Message(bytes, lsn) => output.take(decode(bytes).unwrap(), lsn),
                    Replayed::Done => break,
                }
            },
        }
    }
    let left = std::fs::read_dir(folder).map_or(0, Iterator::count);
    assert!(
        left <= spool.transactions.len(),
        "{left} files are left, of {} transactions",
        spool.transactions.len()
    );
    assert_eq!(spool.holds_prepared(), spool.transactions.values().any(|of| of.prepared));
    output
}

fn run<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(work)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn what_comes_out_is_what_protocol_1_would_have_sent(
        steps in prop::collection::vec((0..24_u8, any::<u8>(), any::<u8>()), 1..200), two_phase in any::<bool>()
    ) {
        let mut server = Server { shapes: [(16_384, 2), (16_385, 3)].into(), two_phase, ..Server::default() };
        for step in steps {
            server.step(step);
        }
        let folder = tempfile::tempdir().unwrap();
        let output = run(through(&server.wire, &folder.path().join("spool"), two_phase));
        let mut expected = server.expected;
        if let Some(commit) = output.refused {
            let at = expected.iter().position(|of| of.1 == commit).unwrap();
            let xid = expected[at].0;
            prop_assert!(server.doubtful.contains(&xid), "transaction {} has no message", xid);
            expected.truncate(at);
        }
        prop_assert_eq!(output.committed, expected);
    }
}
