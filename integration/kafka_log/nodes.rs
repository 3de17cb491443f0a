//! Several brokers, one of which is down.

use std::time::{Duration, Instant};

use tidemark::log::{KafkaLog, Log};
use tidemark::runtime::Class;

use super::numbers::{self, counted, options_at, step};
use crate::support::Cluster;

/// A client that kept asking the broker it had learned for the controller would wait for minutes.
const PATIENCE: Duration = Duration::from_secs(200);

/// Each of them in turn: one is what the log's own client has taken for the controller.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whichever_of_three_brokers_is_down_a_log_that_is_open_is_fenced_and_written_to() {
    let properties = [("transaction.state.log.num.partitions", "1")];
    let mut brokers = Cluster::start(3, &properties);
    let mut options = options_at("nodes", "");
    options.brokers = brokers.addresses();
    let log = KafkaLog::open(options).unwrap();
    let mut count = counted(&log.fence().await.unwrap());
    for node in 0..brokers.count() {
        brokers.in_sync().await;
        brokers[node].kill();
        let began = Instant::now();
        loop {
            assert!(began.elapsed() < PATIENCE, "nothing was written while node {node} was down");
            match log.fence().await {
                Ok(fenced) => {
                    count = counted(&fenced);
                    match log.append(fenced.epoch, step("nodes", count..count + 10)).await {
                        Ok(_) => break,
                        Err(rejected) => {
                            assert_eq!(rejected.error.class(), Class::Retry, "{}", rejected.error);
                        }
                    }
                }
                Err(error) => assert_eq!(error.class(), Class::Retry, "{error}"),
            }
        }
        count += 10;
        eprintln!("node {node}: written to {:?} after its death", began.elapsed());
        brokers[node].start_again();
    }
    assert!(count >= 30, "a step a node, and those whose answers were lost: {count}");
    numbers::check_read(&log, "nodes", count).await;
}
