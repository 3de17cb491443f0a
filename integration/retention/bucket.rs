//! The same in a bucket, with the process killed between its requests.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use serde_json::Value;
use tidemark::lake::{Lake, Store};

use super::{DAYS, SHAPE, ds_of};
use crate::lake::history::history;
use crate::lake::{deliver, tiny};
use crate::support::lake::python;
use crate::support::{Connector, Fault, NAME, PATIENCE, S3, S3Proxy, wait_until};

fn read(bucket: &str) -> BTreeMap<String, Value> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("integration/retention/read.py");
    let endpoint = format!("127.0.0.1:{}", S3::shared().port());
    let arguments = [&endpoint, S3::KEY, S3::SECRET, &format!("{bucket}/team/lake")];
    let output = Command::new(python()).arg(script).args(arguments).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_that_is_killed_between_its_requests_leaves_each_day_whole_or_refused_or_gone() {
    let scratch = tempfile::tempdir().unwrap();
    let history = history(SHAPE);
    let store = S3::shared();
    let bucket = store.bucket().await;
    let proxy = S3Proxy::start(store.port(), 7).await;
    let lake = Lake::on(Store::s3(S3::options(&bucket, store.port())).unwrap(), NAME, tiny(scratch.path()));
    deliver(&lake, &history).await.unwrap();
    let days = ds_of(&history);
    let sizes: BTreeMap<String, u64> =
        history.days.iter().map(|day| (day.cut.ds.to_string(), day.rows.len() as u64)).collect();
    assert_eq!(read(&bucket), sizes.iter().map(|(ds, rows)| (ds.clone(), (*rows).into())).collect());

    let mut connector = Connector::new("postgresql://nobody@127.0.0.1:1/none");
    S3::lake_in(&mut connector, &bucket, proxy.port());
    connector.change("lake.retention", "keep_days", 2);
    connector.change("lake.retention", "keep_month_ends", false);
    connector.change("coordinator", "lease_ttl_ms", 1000);
    // Each is carried out, and the process never hears of it, nor of anything again. A bucket's listing of a day that is
    // half removed is what its next life begins with.
    let steps = [
        "PUT *",
        "DELETE *_SUCCESS",
        "DELETE *_manifest.json",
        "PUT *expired.parquet",
        "POST *delete",
        "DELETE *expired.p",
    ];
    let mut refused = 0;
    for step in steps {
        let stalled = proxy.faults().get(&Fault::Stall).copied().unwrap_or(0);
        proxy.always(step, Fault::Stall);
        let process = RefCell::new(connector.start_command(&["expire", "--delete"]));
        wait_until(PATIENCE, step, async || {
            // As long as the lease of the one before lasts, the command refuses and ends.
            if process.borrow_mut().try_wait().unwrap().is_some() {
                *process.borrow_mut() = connector.start_command(&["expire", "--delete"]);
            }
            proxy.faults().get(&Fault::Stall).copied().unwrap_or(0) > stalled
        })
        .await;
        let mut process = process.into_inner();
        process.kill().unwrap();
        process.wait().unwrap();
        proxy.calm();
        for (ds, answer) in read(&bucket) {
            let is_whole = answer.as_u64() == Some(sizes[&ds]);
            assert!(
                is_whole || answer == 0 || answer.is_string(),
                "{step}, {ds}: {answer}, not {}",
                sizes[&ds]
            );
            refused += usize::from(answer.is_string());
        }
    }
    assert!(refused > 0, "no kill fell between the guard and the parts");
    let removed = async || {
        let output = connector.command(&["expire", "--delete"]);
        let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        // On a busy machine its own lease may run out, too; it goes on where it was.
        let passes = ["is at work", "ran out"].iter().any(|why| said.contains(why));
        assert!(output.status.success() || passes, "{said}");
        output.status.success()
    };
    wait_until(PATIENCE, "the lease of the one that was killed has ended", removed).await;
    let kept: Vec<String> = days[DAYS - 2..].iter().map(ToString::to_string).collect();
    assert_eq!(read(&bucket).into_keys().collect::<Vec<_>>(), kept);
    let bulk =
        proxy.carried().iter().filter(|one| one.method == "POST" && one.target.contains("delete")).count();
    assert!(bulk > 0, "parts are removed many at once");
    proxy.assert_nothing_was_replaced();
}
