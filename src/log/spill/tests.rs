use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::super::conformance::{self, numbered, read_numbered};
use super::super::{SqliteLog, SqliteLogOptions};
use super::*;
use crate::log::RecordBatch;

const TOPIC: &str = "t";
const OWNER: &str = "tidemark-shop";

/// A log which is away when it is told to be, or goes away in the middle of an append, done or not.
#[derive(Debug)]
struct Flaky {
    log: Arc<dyn Log>,
    away: AtomicBool,
    appends: AtomicU64,
    /// What becomes of the next append, which gets no answer.
    doubt: Mutex<Option<Doubt>>,
    /// Nobody may append before a fence.
    to_be_fenced: AtomicBool,
    /// A larger record is refused; 0: none is.
    record_bytes_max: AtomicUsize,
    /// Appends with a record of this topic are refused until somebody acts.
    forbidden: &'static str,
}

#[derive(Clone, Copy, Debug)]
struct Doubt {
    happens: bool,
}

#[async_trait]
impl Log for Flaky {
    async fn fence(&self) -> Result<Fenced> {
        if self.away.load(Ordering::Relaxed) {
            return Err(Error::retry("the brokers are unreachable"));
        }
        self.to_be_fenced.store(false, Ordering::Relaxed);
        self.log.fence().await
    }

    async fn append(&self, epoch: Epoch, append: Append) -> Result<Append, Rejected> {
        if let Some(Doubt { happens }) = self.doubt.lock().await.take() {
            self.away.store(true, Ordering::Relaxed);
            self.to_be_fenced.store(true, Ordering::Relaxed);
            let append = if happens { self.log.append(epoch, append).await.unwrap() } else { append };
            return Err(Rejected { error: Error::retry("no answer"), append, in_doubt: true });
        }
        if self.away.load(Ordering::Relaxed) {
            return Err(Rejected {
                error: Error::retry("the brokers are unreachable"),
                append,
                in_doubt: false,
            });
        }
        assert!(!self.to_be_fenced.load(Ordering::Relaxed), "an append after one in doubt, without a fence");
        if drain::too_large(self, &append) {
            return Err(Rejected { error: Error::retry("a record is too large"), append, in_doubt: false });
        }
        if append.records.topics().any(|records| &**records.topic() == self.forbidden) {
            return Err(Rejected { error: Error::operator("no right to write"), append, in_doubt: false });
        }
        self.appends.fetch_add(1, Ordering::Relaxed);
        self.log.append(epoch, append).await
    }

    async fn ranges(&self) -> Result<BTreeMap<LogPartition, OffsetRange>> {
        self.log.ranges().await
    }

    async fn read(&self, partition: &LogPartition, from: Offset, bytes_max: usize) -> Result<Fetched> {
        self.log.read(partition, from, bytes_max).await
    }

    async fn trim(&self, partition: &LogPartition, before: Offset) -> Result<()> {
        self.log.trim(partition, before).await
    }

    fn record_bytes_sure(&self, topic: &str) -> Option<usize> {
        if self.appends.load(Ordering::Relaxed) > 0 { self.record_bytes_max(topic) } else { Some(1_000_000) }
    }

    fn record_bytes_max(&self, _: &str) -> Option<usize> {
        Some(self.record_bytes_max.load(Ordering::Relaxed)).filter(|max| *max > 0)
    }

    async fn appended(&self) {
        self.log.appended().await;
    }
}

/// Here the number is all that tells how far a log is; of one that is a multiple of a hundred nobody knows.
fn passed(log: &State, set: &[(String, Vec<u8>)]) -> bool {
    let number = |text: &[u8]| std::str::from_utf8(text).unwrap().parse::<u64>().unwrap();
    let log = log.get("n").map_or(0, |text| number(text));
    set.iter().filter(|(key, _)| key == "n").all(|(_, text)| number(text) <= log && !log.is_multiple_of(100))
}

/// Both files, and a process on them.
struct World {
    dir: tempfile::TempDir,
    remote: Arc<Flaky>,
    log: SpillLog,
}

fn sqlite(dir: &tempfile::TempDir, name: &str) -> Arc<dyn Log> {
    let options = SqliteLogOptions { retention_ms: 0, ..SqliteLogOptions::new(dir.path().join(name)) };
    Arc::new(SqliteLog::open(options).unwrap())
}

impl World {
    fn new() -> Self {
        Self::on(tempfile::tempdir().unwrap())
    }

    fn on(dir: tempfile::TempDir) -> Self {
        let log = sqlite(&dir, "log.db");
        let remote = Arc::new(Flaky {
            log,
            away: AtomicBool::new(false),
            appends: AtomicU64::new(0),
            doubt: Mutex::default(),
            to_be_fenced: AtomicBool::new(false),
            record_bytes_max: AtomicUsize::new(0),
            forbidden: "forbidden",
        });
        let log = SpillLog::new(Arc::clone(&remote) as Arc<dyn Log>, sqlite(&dir, "spill.db"), OWNER, passed);
        Self { dir, remote, log }
    }

    /// The process dies, and another one starts.
    fn again(self) -> Self {
        let Self { dir, remote, log } = self;
        drop((log, remote));
        Self::on(dir)
    }

    fn away(&self, away: bool) {
        self.remote.away.store(away, Ordering::Relaxed);
    }

    /// The next append gets no answer, and the log is away from then on.
    async fn doubt(&self, happens: bool) {
        *self.remote.doubt.lock().await = Some(Doubt { happens });
    }

    async fn append(&self, epoch: Epoch, n: u64) -> Result<(), Error> {
        let state = vec![("n".to_owned(), n.to_string().into_bytes())];
        let append = Append { records: numbered(TOPIC, n..n + 1), state };
        self.log.append(epoch, append).await.map(drop).map_err(|rejected| rejected.error)
    }

    async fn numbers(&self) -> Vec<u64> {
        let found = read_numbered(self.remote.log.as_ref(), TOPIC, 0, 1 << 20).await.unwrap();
        found.into_iter().map(|(_, n)| n).collect()
    }

    async fn drained(&self) {
        let start = std::time::Instant::now();
        while self.log.trouble().is_some() {
            assert!(start.elapsed() < Duration::from_secs(60), "it is not drained");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

fn n(fenced: &Fenced) -> Option<u64> {
    fenced.state.get("n").map(|text| std::str::from_utf8(text).unwrap().parse().unwrap())
}

#[tokio::test]
async fn it_conforms_while_the_remote_log_is_there() {
    let dir = tempfile::tempdir().unwrap();
    conformance::run(|name| {
        let (remote, local) =
            (sqlite(&dir, &format!("{name}.db")), sqlite(&dir, &format!("{name}-spill.db")));
        async move { Arc::new(SpillLog::new(remote, local, OWNER, passed)) as Arc<dyn Log> }
    })
    .await;
}

#[tokio::test]
async fn appends_go_on_while_the_log_is_away_and_follow_in_order() {
    let world = World::new();
    let epoch = world.log.fence().await.unwrap().epoch;
    world.append(epoch, 0).await.unwrap();
    world.away(true);
    for n in 1..50 {
        world.append(epoch, n).await.unwrap();
    }
    assert_eq!(world.numbers().await, [0], "the log has only what it took");
    let trouble = world.log.trouble().unwrap();
    assert!(trouble.contains("unreachable") && trouble.contains("49 of them"), "{trouble}");
    world.away(false);
    world.append(epoch, 50).await.unwrap();
    world.drained().await;
    world.append(epoch, 51).await.unwrap();
    assert!(world.numbers().await.into_iter().eq(0..52));
    let state = world.remote.log.fence().await.unwrap().state;
    assert_eq!(state.keys().collect::<Vec<_>>(), ["n"], "the spill leaves nothing behind");
}

#[tokio::test]
async fn what_is_kept_survives_the_process_and_arrives_before_the_state_is_handed_out() {
    let world = World::new();
    let epoch = world.log.fence().await.unwrap().epoch;
    world.append(epoch, 0).await.unwrap();
    world.away(true);
    for n in 1..20 {
        world.append(epoch, n).await.unwrap();
    }
    let world = world.again();
    let fenced = world.log.fence().await.unwrap();
    assert_eq!(n(&fenced), Some(19));
    assert!(world.numbers().await.into_iter().eq(0..20));
    assert!(world.append(epoch, 20).await.is_err(), "an epoch of before");
    world.append(fenced.epoch, 20).await.unwrap();
    assert!(world.numbers().await.into_iter().eq(0..21));
}

#[tokio::test]
async fn what_is_kept_arrives_in_far_fewer_steps_than_it_came_in() {
    let world = World::new();
    let epoch = world.log.fence().await.unwrap().epoch;
    world.away(true);
    for n in 0..500 {
        world.append(epoch, n).await.unwrap();
    }
    let world = world.again();
    assert_eq!(n(&world.log.fence().await.unwrap()), Some(499));
    assert!(world.numbers().await.into_iter().eq(0..500));
    assert_eq!(world.remote.appends.load(Ordering::Relaxed), 1, "of some 40 bytes each");
}

/// One record.
fn of_bytes(bytes: usize) -> RecordBatch {
    let mut records = RecordBatch::default();
    let mut record = records.topic(&TOPIC.into()).begin(0);
    record.null();
    record.field(|out| out.resize(out.len() + bytes, b'x'));
    record.finish();
    records
}

#[tokio::test]
async fn a_record_is_kept_only_if_its_topic_surely_takes_it() {
    // Whether the log was asked for the limit, and what that is (0: none).
    for (known, limit) in [(false, 0), (true, 0), (true, 10_000)] {
        let world = World::new();
        let epoch = world.log.fence().await.unwrap().epoch;
        if known {
            world.append(epoch, 0).await.unwrap();
        }
        world.remote.record_bytes_max.store(limit, Ordering::Relaxed);
        world.away(true);
        world.append(epoch, 1).await.unwrap();
        let large = Append { records: of_bytes(2_000_000), state: Vec::new() };
        let outcome = world.log.append(epoch, large).await;
        let refused = outcome.err().map(|rejected| (rejected.error.to_string(), rejected.in_doubt));
        let told = refused.as_ref().is_some_and(|(error, in_doubt)| {
            error.contains("bytes is not kept") && error.contains("topic t") && !in_doubt
        });
        assert!(if known && limit == 0 { refused.is_none() } else { told }, "{known} {limit}: {refused:?}");
        world.append(epoch, 2).await.unwrap();
        world.away(false);
        world.drained().await;
    }
}

#[tokio::test]
async fn a_record_whose_topic_may_not_take_it_is_refused_also_before_anything_is_kept() {
    let world = World::new();
    let epoch = world.log.fence().await.unwrap().epoch;
    world.away(true);
    let large = Append { records: of_bytes(2_000_000), state: Vec::new() };
    let rejected = world.log.append(epoch, large).await.unwrap_err();
    assert_eq!((rejected.error.class(), rejected.in_doubt), (Class::Retry, false));
    assert!(world.log.trouble().is_none(), "nothing is kept");
    world.away(false);
    world.log.append(epoch, rejected.append).await.unwrap();
}

#[tokio::test]
async fn an_append_that_is_refused_holds_up_none_that_was_kept_before_it() {
    let world = World::new();
    let epoch = world.log.fence().await.unwrap().epoch;
    world.away(true);
    for n in 0..20 {
        world.append(epoch, n).await.unwrap();
    }
    let records = numbered("forbidden", 0..1);
    world.log.append(epoch, Append { records, state: Vec::new() }).await.unwrap();
    let world = world.again();
    let error = world.log.fence().await.unwrap_err();
    assert!(error.to_string().contains("no right to write"), "{error}");
    assert!(world.numbers().await.into_iter().eq(0..20));
}

#[tokio::test]
async fn a_record_that_the_log_refuses_for_its_size_holds_up_none_that_was_kept_before_it() {
    let world = World::new();
    let epoch = world.log.fence().await.unwrap().epoch;
    world.away(true);
    for n in 0..20 {
        world.append(epoch, n).await.unwrap();
    }
    let large = of_bytes(10_000);
    world.log.append(epoch, Append { records: large, state: Vec::new() }).await.unwrap();
    let world = world.again();
    world.remote.record_bytes_max.store(1000, Ordering::Relaxed);
    let error = world.log.fence().await.unwrap_err();
    assert!(error.to_string().contains("too large"), "{error}");
    assert!(world.numbers().await.into_iter().eq(0..20));
}

#[tokio::test]
async fn an_append_without_an_answer_is_kept_and_arrives_once_whatever_became_of_it() {
    for (happens, dies) in [(false, false), (true, false), (false, true), (true, true)] {
        let world = World::new();
        let epoch = world.log.fence().await.unwrap().epoch;
        world.append(epoch, 0).await.unwrap();
        world.doubt(happens).await;
        for n in 1..20 {
            world.append(epoch, n).await.unwrap();
        }
        assert_eq!(world.numbers().await.len(), 1 + usize::from(happens));
        let world = if dies {
            let world = world.again();
            assert_eq!(n(&world.log.fence().await.unwrap()), Some(19));
            world
        } else {
            world.away(false);
            world.drained().await;
            // The epoch that capture knows is still good.
            world.append(epoch, 20).await.unwrap();
            world
        };
        let count = if dies { 20 } else { 21 };
        assert!(world.numbers().await.into_iter().eq(0..count), "{:?}", world.numbers().await);
    }
}

/// Two appends are kept, and another writer brings the log to that number.
async fn gone_on(to: u64) -> World {
    let world = World::new();
    let epoch = world.log.fence().await.unwrap().epoch;
    world.append(epoch, 0).await.unwrap();
    world.away(true);
    for n in 1..3 {
        world.append(epoch, n).await.unwrap();
    }
    let other = world.remote.log.fence().await.unwrap().epoch;
    let state = vec![("n".to_owned(), to.to_string().into_bytes())];
    world.remote.log.append(other, Append { records: numbered(TOPIC, 1..to), state }).await.unwrap();
    world
}

#[tokio::test]
async fn a_log_that_another_writer_went_on_with_is_not_given_what_was_kept() {
    for to in [1, 100] {
        let world = gone_on(to).await.again();
        let before = world.numbers().await;
        for _ in 0..2 {
            let error = world.log.fence().await.unwrap_err();
            assert_eq!(error.class(), Class::Operator);
            assert!(error.to_string().contains("another process has gone on"), "{error}");
        }
        assert_eq!(world.numbers().await, before);
    }
}

#[tokio::test]
async fn what_another_writer_has_brought_into_the_log_is_let_go_of() {
    let world = gone_on(7).await.again();
    let fenced = world.log.fence().await.unwrap();
    assert_eq!(n(&fenced), Some(7));
    world.append(fenced.epoch, 7).await.unwrap();
    assert!(world.numbers().await.into_iter().eq(0..8), "none of them twice");
    let world = world.again();
    assert_eq!(n(&world.log.fence().await.unwrap()), Some(7), "and none later");
    assert!(world.numbers().await.into_iter().eq(0..8));
}

/// Interrupted after any of what was kept had gone from the file, and before that was noted.
#[tokio::test]
async fn what_was_being_let_go_of_when_the_process_died_is_let_go_of() {
    for gone in [1, 2] {
        let World { dir, remote, log } = gone_on(7).await;
        drop((remote, log));
        let local = sqlite(&dir, "spill.db");
        local.fence().await.unwrap();
        let (partition, range) = local.ranges().await.unwrap().pop_first().unwrap();
        assert_eq!(range.end - range.start, 2);
        local.trim(&partition, range.start + gone).await.unwrap();
        assert_eq!(local.ranges().await.unwrap()[&partition].start, range.start + gone);
        drop(local);
        let world = World::on(dir);
        let fenced = world.log.fence().await.unwrap();
        world.append(fenced.epoch, 7).await.unwrap();
        assert!(world.numbers().await.into_iter().eq(0..8), "{gone}");
    }
}

#[tokio::test]
async fn a_writer_in_doubt_that_was_overtaken_lets_go_only_when_it_begins_anew() {
    let world = World::new();
    let epoch = world.log.fence().await.unwrap().epoch;
    world.append(epoch, 0).await.unwrap();
    world.doubt(false).await;
    world.append(epoch, 1).await.unwrap();
    let other = world.remote.log.fence().await.unwrap().epoch;
    let state = vec![("n".to_owned(), b"3".to_vec())];
    world.remote.log.append(other, Append { records: numbered(TOPIC, 1..4), state }).await.unwrap();
    world.away(false);
    let start = std::time::Instant::now();
    let error = loop {
        match world.append(epoch, 2).await {
            Err(error) => break error,
            Ok(()) => assert!(start.elapsed() < Duration::from_secs(60), "nobody told it"),
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    };
    assert_eq!(error.class(), Class::Fenced, "{error}");
    let fenced = world.log.fence().await.unwrap();
    assert_eq!(n(&fenced), Some(3));
    world.append(fenced.epoch, 4).await.unwrap();
    assert!(world.numbers().await.into_iter().eq(0..5));
}

#[tokio::test]
async fn a_fenced_writer_finds_out_when_it_drains() {
    let world = World::new();
    let epoch = world.log.fence().await.unwrap().epoch;
    world.away(true);
    world.append(epoch, 0).await.unwrap();
    world.remote.log.fence().await.unwrap();
    world.away(false);
    let start = std::time::Instant::now();
    let error = loop {
        match world.append(epoch, 1).await {
            Err(error) => break error,
            Ok(()) => assert!(start.elapsed() < Duration::from_secs(60), "nobody told it"),
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    };
    assert_eq!(error.class(), Class::Fenced);
    assert!(world.numbers().await.is_empty());
}

#[tokio::test]
async fn whatever_dies_and_whenever_each_append_arrives_once_and_in_order() {
    let seed =
        std::env::var("TIDEMARK_TEST_SEED").map_or_else(|_| rand::random(), |text| text.parse().unwrap());
    eprintln!("TIDEMARK_TEST_SEED={seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let mut world = World::new();
    let mut next = 0;
    for _ in 0..30 {
        world.away(random.random_ratio(1, 3));
        let fenced = loop {
            match world.log.fence().await {
                Ok(fenced) => break fenced,
                Err(error) => assert_eq!(error.class(), Class::Retry, "{error}"),
            }
            world.away(false);
        };
        // What was acknowledged is there.
        assert_eq!(n(&fenced).map_or(0, |n| n + 1), next);
        for _ in 0..random.random_range(0..40) {
            match random.random_range(0..10) {
                0 => world.away(true),
                1 => world.away(false),
                2 => world.doubt(random.random()).await,
                3 => tokio::time::sleep(Duration::from_millis(random.random_range(0..5))).await,
                _ => {}
            }
            world.append(fenced.epoch, next).await.unwrap();
            next += 1;
        }
        world = world.again();
    }
    world.log.fence().await.unwrap();
    assert!(world.numbers().await.into_iter().eq(0..next), "{:?}", world.numbers().await);
}

#[tokio::test]
async fn what_was_kept_for_another_log_is_left_alone_although_both_are_new() {
    let world = World::new();
    let epoch = world.log.fence().await.unwrap().epoch;
    world.away(true);
    world.append(epoch, 0).await.unwrap();
    // Nothing has been written to either log: only their names tell them apart.
    let (dir, remote) = (world.dir, Arc::clone(&world.remote));
    drop(world.log);
    let other = sqlite(&dir, "other.db");
    let log = SpillLog::new(Arc::clone(&other), sqlite(&dir, "spill.db"), "tidemark-other", passed);
    let error = log.fence().await.unwrap_err();
    assert_eq!(error.class(), Class::Operator);
    let text = error.to_string();
    assert!(text.contains("\"tidemark-shop\"") && text.contains("\"tidemark-other\""), "{text}");
    assert!(read_numbered(other.as_ref(), TOPIC, 0, 1 << 20).await.unwrap().is_empty());
    drop(log);
    remote.away.store(false, Ordering::Relaxed);
    let log = SpillLog::new(remote.clone(), sqlite(&dir, "spill.db"), OWNER, passed);
    log.fence().await.unwrap();
    let found = read_numbered(remote.log.as_ref(), TOPIC, 0, 1 << 20).await.unwrap();
    assert_eq!(found, [(0, 0)], "it is brought into the log that it was kept for");
    // Then the file is free for the other one.
    drop(log);
    let log = SpillLog::new(other, sqlite(&dir, "spill.db"), "tidemark-other", passed);
    assert_eq!(n(&log.fence().await.unwrap()), None);
}
