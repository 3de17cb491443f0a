//! `tidemark expire` itself, beside a connector that runs.

use crate::support::days::{days, use_rule};
use crate::support::lake::{hashes, published};
use crate::support::{Connector, PATIENCE, Postgres, Running, wait_until};

fn said(running: &Running, arguments: &[&str]) -> (bool, String) {
    let output = running.command(arguments);
    (output.status.success(), String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn expire_lists_what_would_go_and_removes_it_when_told_to_while_days_go_on() {
    let server = Postgres::start().await;
    let client = server.connect().await;
    client
        .batch_execute(
            "CREATE TABLE t (id int PRIMARY KEY, a text); CREATE TABLE kept (id int PRIMARY KEY);
             INSERT INTO t SELECT i, md5(i::text) FROM generate_series(1, 5000) i; INSERT INTO kept VALUES (1)",
        )
        .await
        .unwrap();
    let mut connector = Connector::new(&server.url());
    let days = days(&client).await;
    connector.change("lake.retention", "keep_days", 1);
    connector.change("lake.retention", "keep_month_ends", false);
    connector.change("[table]", "match", "*.kept");
    connector.change("[table]", "keep_days", 0);
    use_rule(&mut connector, 0);
    let mut running = connector.start_ready("run").await;
    for (number, ds) in days.iter().enumerate() {
        if number > 0 {
            assert!(running.terminate().await.success());
            use_rule(&mut connector, number);
            running = connector.start_ready("run").await;
        }
        client.batch_execute("UPDATE t SET a = a || 'x' WHERE id % 7 = 0").await.unwrap();
        running.cut(ds);
        connector.wait_published(ds).await;
    }
    let before = hashes(&connector.lake());
    let (done, text) = said(&running, &["expire"]);
    assert!(done && text.contains("public.t  ds=") && text.contains("1 days would go"), "{text}");
    assert!(!text.contains("kept"), "{text}");
    let kept = |hashes: &std::collections::BTreeMap<String, String>| {
        let mut kept = hashes.clone();
        kept.retain(|path, _| !path.contains("_temporary"));
        kept
    };
    assert_eq!(kept(&hashes(&connector.lake())), kept(&before), "a dry run changes nothing");

    let (done, text) = said(&running, &["expire", "--delete"]);
    assert!(done && text.contains("1 days removed"), "{text}");
    assert!(
        !connector.snapshot("t", &days[0]).exists(),
        "readers would take an empty folder for a partition"
    );
    for ds in &days[1..] {
        assert!(published(&connector, ds).into_iter().all(|(path, hash)| before.get(&path) == Some(&hash)));
        let (done, text) = said(&running, &["verify", "--ds", ds]);
        assert!(done && text.contains("2 ok"), "{text}");
    }
    let (done, text) = said(&running, &["verify", "--ds", &days[0]]);
    assert!(done && text.contains("removed by a rule (not among the last 1 days)"), "{text}");
    let (done, text) = said(&running, &["wait", "--ds", &days[0], "--table", "public.t", "--timeout", "5s"]);
    assert!(!done && text.contains("a rule has removed public.t"), "{text}");
    let (done, _) = said(&running, &["wait", "--ds", &days[0], "--table", "public.kept", "--timeout", "5s"]);
    assert!(done);
    let (done, text) = said(&running, &["expire", "--delete"]);
    assert!(done && text.contains("no day goes"), "{text}");
    wait_until(PATIENCE, "all is well", async || running.health().1["status"] == "ok").await;
}
