use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::*;
use crate::change::{Lsn, Position};
use crate::runtime::{Error, Shutdown};

/// A serving endpoint on a free port.
struct Endpoint {
    ops: Ops,
    commands: mpsc::Receiver<Command>,
    base: String,
    shutdown: Shutdown,
    serving: tokio::task::JoinHandle<Result<()>>,
}

impl Endpoint {
    async fn start() -> Self {
        let (ops, commands) = Ops::new("shop");
        let server = Server::bind("127.0.0.1:0").await.unwrap();
        let base = format!("http://{}", server.address());
        let shutdown = Shutdown::new();
        let serving = tokio::spawn(server.serve(ops.clone(), shutdown.clone()));
        Self { ops, commands, base, shutdown, serving }
    }

    async fn get(&self, path: &str) -> (u16, String) {
        let url = format!("{}{path}", self.base);
        request(move |agent| agent.get(url).call()).await
    }

    async fn json(&self, path: &str) -> (u16, Value) {
        let (code, body) = self.get(path).await;
        (code, serde_json::from_str(&body).unwrap())
    }

    async fn post(
        &self,
        headers: &'static [(&'static str, &'static str)],
        body: &'static str,
    ) -> (u16, String) {
        let url = format!("{}/api/v1/cut", self.base);
        request(move |agent| {
            let request =
                headers.iter().fold(agent.post(url), |request, (name, value)| request.header(*name, *value));
            request.send(body)
        })
        .await
    }

    async fn stop(self) {
        self.shutdown.raise();
        self.serving.await.unwrap().unwrap();
    }
}

type Answer = std::result::Result<ureq::http::Response<ureq::Body>, ureq::Error>;

async fn request(call: impl FnOnce(ureq::Agent) -> Answer + Send + 'static) -> (u16, String) {
    let call = move || {
        let agent = ureq::Agent::from(ureq::Agent::config_builder().http_status_as_error(false).build());
        let mut answer = call(agent).unwrap();
        (answer.status().as_u16(), answer.body_mut().read_to_string().unwrap())
    };
    tokio::task::spawn_blocking(call).await.unwrap()
}

fn day(text: &str) -> Ds {
    text.parse().unwrap()
}

fn table(name: &str) -> TableName {
    name.parse().unwrap()
}

#[tokio::test]
async fn health_is_503_exactly_while_a_person_must_look() {
    let endpoint = Endpoint::start().await;
    let source = endpoint.ops.component("source");
    source.ok();
    let (code, body) = endpoint.json("/health").await;
    assert_eq!((code, &body["status"]), (200, &json!("ok")));

    source.waiting("connection refused");
    let (code, body) = endpoint.json("/health").await;
    assert_eq!((code, &body["status"]), (200, &json!("degraded")), "it may come back by itself");
    assert_eq!(body["reasons"][0]["message"], "connection refused");

    let error = Error::operator("the slot tidemark_shop is gone").mend("Run tidemark setup.");
    endpoint.ops.component("source").failed(&error);
    let (code, body) = endpoint.json("/health").await;
    assert_eq!((code, &body["status"]), (503, &json!("failing")));
    assert_eq!(body["components"]["source"]["state"], "failed");
    assert_eq!(body["reasons"][0]["mend"], "Run tidemark setup.");

    source.ok();
    let (code, body) = endpoint.json("/health").await;
    assert_eq!(code, 200);
    assert_eq!(
        body["components"]["source"]["reason"], "the slot tidemark_shop is gone",
        "the last reason stays"
    );
    endpoint.stop().await;
}

#[tokio::test]
async fn a_failed_table_fails_health_and_leaves_the_others_alone() {
    let endpoint = Endpoint::start().await;
    endpoint.ops.table(&table("public.a")).captured(3, 4, Position::default(), 1);
    endpoint.ops.table(&table("public.b")).failed(&Error::operator("the column \"x\" cannot be carried"));
    let (code, body) = endpoint.json("/health").await;
    assert_eq!(code, 503);
    assert_eq!(body["tables"]["public.a"]["state"], "streaming");
    assert_eq!(body["tables"]["public.a"]["records"], 4);
    assert_eq!(body["tables"]["public.b"]["reason"], "the column \"x\" cannot be carried");
    endpoint.stop().await;
}

#[tokio::test]
async fn the_process_lives_from_the_start_and_is_ready_when_all_parts_have_begun() {
    let endpoint = Endpoint::start().await;
    let (source, log) = (endpoint.ops.component("source"), endpoint.ops.component("log"));
    assert_eq!(endpoint.get("/health/live").await.0, 200);
    assert_eq!(endpoint.get("/health/ready").await.0, 503);
    source.ok();
    assert_eq!(endpoint.get("/health/ready").await.0, 503);
    log.ok();
    assert_eq!(
        endpoint.json("/health/ready").await,
        (200, json!({"ready": true, "components": {"log": "ok", "source": "ok"}}))
    );
    source.failed(&Error::operator("x"));
    assert_eq!(endpoint.get("/health/ready").await.0, 503);
    assert_eq!(endpoint.get("/health/live").await.0, 200);
    endpoint.stop().await;
}

#[tokio::test]
async fn a_cut_is_asked_of_the_pipeline_and_its_answer_given() {
    let mut endpoint = Endpoint::start().await;
    let mut commands = std::mem::replace(&mut endpoint.commands, mpsc::channel(1).1);
    tokio::spawn(async move {
        while let Some(Command::Cut { ds, reply }) = commands.recv().await {
            let answer = match ds {
                None => Ok(day("2026-11-22")),
                Some(ds) => Err(Error::operator(format!("ds={ds} has its cut")).mend("Choose another day.")),
            };
            reply.send(answer).unwrap();
        }
    });
    let json_type = &[("content-type", "application/json")];
    assert_eq!(endpoint.post(json_type, "{}").await, (200, "{\"ds\":\"2026-11-22\"}".to_owned()));
    assert_eq!(endpoint.post(json_type, "{\"ds\":null}").await.0, 200);
    let (code, body) = endpoint.post(json_type, "{\"ds\":\"2026-11-20\"}").await;
    assert_eq!(code, 409);
    assert_eq!(
        body,
        "{\"error\":\"ds=2026-11-20 has its cut\",\"mend\":\"Choose another day.\",\"class\":\"operator\"}"
    );
    assert_eq!(endpoint.post(json_type, "{\"ds\":\"20 November\"}").await.0, 422);
    assert_eq!(endpoint.post(json_type, "{\"day\":\"2026-11-20\"}").await.0, 422);
    endpoint.stop().await;
}

#[tokio::test]
async fn a_process_that_takes_no_commands_says_so() {
    let mut endpoint = Endpoint::start().await;
    endpoint.commands.close();
    let (code, body) = endpoint.post(&[("content-type", "application/json")], "{}").await;
    assert_eq!(code, 409);
    assert!(body.contains("this process does not capture"), "{body}");
    endpoint.stop().await;
}

#[tokio::test]
async fn a_page_of_another_origin_cannot_ask_for_a_cut() {
    let mut endpoint = Endpoint::start().await;
    endpoint.commands.close();
    let json_type = ("content-type", "application/json");
    for (headers, code) in [
        (&[("content-type", "text/plain")][..], 415),
        (&[("content-type", "application/x-www-form-urlencoded")], 415),
        (&[json_type, ("origin", "https://evil.example")], 403),
        (&[json_type, ("origin", "null")], 403),
        (&[json_type, ("sec-fetch-site", "cross-site")], 403),
        (&[json_type, ("host", "evil.example")], 403),
        (&[json_type, ("host", "evil.example:80"), ("origin", "http://evil.example:80")], 403),
        (&[json_type, ("host", "localhost:80"), ("origin", "http://localhost:80")], 409),
        (&[json_type, ("host", "[::1]:80"), ("sec-fetch-site", "same-origin")], 409),
    ] {
        let headers: &'static [_] = Box::leak(headers.to_vec().into_boxed_slice());
        assert_eq!(endpoint.post(headers, "{}").await.0, code, "{headers:?}");
    }
    assert_eq!(endpoint.get("/api/v1/cut").await.0, 405);
    endpoint.stop().await;
}

#[tokio::test]
async fn days_are_told_table_by_table() {
    let endpoint = Endpoint::start().await;
    let days = endpoint.ops.days();
    let (a, b) = (table("public.a"), table("public.b"));
    days.cut_began(day("2026-11-20"));
    assert_eq!(endpoint.json("/api/v1/status").await.1["cut"]["in_progress"], "2026-11-20");
    days.cut_made(day("2026-11-20"), now_ms(), [a.clone(), b.clone()]);
    days.table(day("2026-11-20"), &a, DayTable::Published { rows: 7, bytes: 70 });
    days.table(day("2026-11-20"), &a, DayTable::Published { rows: 7, bytes: 70 });
    days.table(day("2026-11-20"), &b, DayTable::failed(&Error::operator("disk full")));
    let (code, body) = endpoint.json("/api/v1/days/2026-11-20").await;
    assert_eq!(code, 200);
    assert_eq!((&body["state"], &body["tables"], &body["rows"]), (&json!("failed"), &json!(2), &json!(7)));
    assert_eq!(body["table_states"]["public.a"], json!({"state": "published", "rows": 7, "bytes": 70}));
    assert_eq!(body["table_states"]["public.b"]["reason"], "disk full");
    assert_eq!(endpoint.get("/health").await.0, 503);

    days.table(day("2026-11-20"), &b, DayTable::Published { rows: 1, bytes: 10 });
    days.published(day("2026-11-20"));
    let (_, body) = endpoint.json("/api/v1/status").await;
    assert_eq!((&body["days"][0]["state"], &body["days"][0]["rows"]), (&json!("published"), &json!(8)));
    assert_eq!(body["cut"]["last_published_ds"], "2026-11-20");
    assert_eq!(endpoint.get("/health").await.0, 200);
    assert_eq!(endpoint.get("/api/v1/days/2026-11-19").await.0, 404);
    assert_eq!(endpoint.get("/api/v1/days/yesterday").await.0, 400);
    endpoint.stop().await;
}

#[test]
fn of_many_days_only_some_are_remembered() {
    let days = Days::default();
    let mut ds = day("2026-01-01");
    for _ in 0..40 {
        days.cut_made(ds, 0, [table("public.a")]);
        days.table(ds, &table("public.a"), DayTable::Published { rows: 1, bytes: 1 });
        days.published(ds);
        ds = ds.tomorrow().unwrap();
    }
    let held = days.held();
    assert_eq!(held.days.len(), 14);
    assert_eq!(held.days.values().filter(|day| !day.detail.is_empty()).count(), 2);
    assert_eq!(held.last_cut, ds.yesterday().ok());
}

#[test]
fn lag_is_the_age_of_what_is_pending_and_zero_when_idle() {
    let source = SourceStats::default();
    let now = now_ms();
    source.heard(Lsn(1000));
    assert_eq!(source.lag_ms(now), 0);
    source.durable(Lsn(100), Some(now - 8 * 3_600_000));
    source.received(Lsn(200), now - 5_000);
    assert_eq!(source.lag_ms(now), 5_000, "a quiet night before it is no lag");
    source.received(Lsn(300), now - 1_000);
    assert_eq!(source.lag_ms(now), 5_000);
    source.durable(Lsn(200), Some(now - 5_000));
    source.received(Lsn(400), now);
    assert_eq!(source.lag_ms(now), 5_000, "all up to then is durable, what follows is not");
    source.durable(Lsn(400), Some(now));
    assert_eq!(source.lag_ms(now), 0);
    assert_eq!(source.lag_bytes(), 600);
    source.durable(Lsn(1000), None);
    assert_eq!((source.lag_bytes(), source.lag_ms(now)), (0, 0));
    assert!(source.lag_ms(now + 120_000) >= 119_000, "of a silent server nobody knows what is pending");
}

fn slot(retained_bytes: u64, limit_bytes: u64) -> SlotLook {
    SlotLook {
        retained_bytes,
        limit_bytes: Some(limit_bytes),
        wal_status: "extended".into(),
        ..SlotLook::default()
    }
}

#[test]
fn what_the_slot_keeps_is_told_early_and_with_what_comes_then() {
    let told = |retained: u64, server: Option<u64>, own: u64, drops_slot: bool| {
        let (ops, _commands) = Ops::new("shop");
        let thresholds =
            SourceThresholds { retained_bytes_max: own, drops_slot, ..SourceThresholds::default() };
        ops.source().set_thresholds(thresholds);
        ops.source().set_slot(Some(SlotLook { limit_bytes: server, ..slot(retained, 1) }));
        let reasons = ops.report().reasons;
        assert!(reasons.len() <= 1, "{reasons:?}");
        reasons.into_iter().next().map(|reason| (reason.severity, reason.message))
    };
    assert_eq!(told(u64::MAX, None, 0, false), None, "without a limit there is nothing to be near to");
    assert_eq!(told(499, Some(1000), 0, false), None);
    let (severity, message) = told(500, Some(1000), 0, false).unwrap();
    assert!(severity == Severity::Watch && message.contains("50 % of max_slot_wal_keep_size"), "{message}");
    assert_eq!(told(749, Some(1000), 2000, false).unwrap().0, Severity::Watch);
    assert_eq!(told(750, Some(1000), 2000, false).unwrap().0, Severity::Act);
    let (severity, message) = told(750, Some(2000), 1000, true).unwrap();
    assert!(severity == Severity::Act && message.contains("the slot is dropped"), "{message}");
    let (severity, message) = told(2000, None, 1000, false).unwrap();
    assert!(
        severity == Severity::Act && message.contains("200 % of [source] retained_wal_bytes_max"),
        "{message}"
    );
    assert!(message.contains("until the source's disk is full"), "{message}");
}

#[test]
fn a_lag_is_told_from_the_configured_bounds_on_and_not_of_a_process_that_stands_by() {
    let (ops, _commands) = Ops::new("shop");
    let thresholds = SourceThresholds {
        lag_seconds_warn: 5.0,
        lag_seconds_max: 0.0,
        lag_bytes_warn: 1000,
        lag_bytes_max: 2000,
        ..SourceThresholds::default()
    };
    ops.source().set_thresholds(thresholds);
    let look = |bytes: u64, lag_seconds: f64| {
        let look =
            SlotLook { wal_end: Lsn(bytes + 1), confirmed: Lsn(1), lag_seconds, ..SlotLook::default() };
        ops.source().set_slot(Some(look));
        ops.report().reasons.into_iter().map(|reason| reason.severity).collect::<Vec<_>>()
    };
    assert_eq!(look(999, 4.0), []);
    assert_eq!(look(999, 1e9), [Severity::Watch], "zero: no limit");
    assert_eq!(look(1000, 0.0), [Severity::Watch]);
    assert_eq!(look(2000, 6.0), [Severity::Act]);
    ops.component("source").standby("another one streams");
    assert_eq!(look(2000, 6.0), []);
}

#[tokio::test]
async fn late_missing_and_stuck_are_told_with_what_to_do() {
    let (ops, _commands) = Ops::new("shop");
    ops.source().heard(Lsn(5000));
    ops.source().received(Lsn(5000), now_ms() - 1_000_000);
    ops.source().set_slot(Some(slot(900, 1000)));
    ops.log().set_size(95, 100);
    ops.days().cut_due(now_ms() - 600_000);
    ops.days().cut_made(day("2026-11-20"), now_ms() - 7_200_000, [table("public.a")]);
    ops.table(&table("public.a")).dead_lettered(2);
    let report = ops.report();
    let told: Vec<_> = report.reasons.iter().map(|r| (&*r.kind, r.subject.as_str(), r.severity)).collect();
    let expected = [
        ("late", "source", Severity::Act),
        ("late", "source", Severity::Act),
        ("stuck", "log", Severity::Act),
        ("late", "cut", Severity::Act),
        ("late", "ds=2026-11-20", Severity::Act),
        ("missing", "public.a", Severity::Watch),
    ];
    assert_eq!(told, expected);
    assert!(report.reasons.iter().all(|reason| reason.mend.is_some()), "{:#?}", report.reasons);
}

#[test]
fn one_cause_is_one_reason_however_many_tables_it_hits() {
    let (ops, _commands) = Ops::new("shop");
    let ds = day("2026-11-20");
    let name = |number| TableName::new("public", format!("t{number:04}"));
    ops.days().cut_made(ds, now_ms(), (0..1000).map(name));
    for number in 0..1000 {
        ops.table(&name(number)).failed(&Error::operator("type geometry").mend("Exclude it."));
        ops.days().table(ds, &name(number), DayTable::failed(&Error::operator("disk full")));
        ops.table(&name(number)).dead_lettered(2);
    }
    let told: Vec<_> =
        ops.report().reasons.iter().map(|r| format!("{} {}: {}", r.kind, r.subject, r.message)).collect();
    let expected = [
        "stuck ds=2026-11-20: public.t0000 and 999 more tables: disk full",
        "stuck public.t0000 and 999 more tables: type geometry",
        "missing public.t0000 and 999 more tables: 2,000 records are missing from the lake: they could not be \
         processed and wait as dead letters",
    ];
    assert_eq!(told, expected);
}

#[test]
fn many_causes_are_told_in_part_and_all_counted() {
    let (ops, _commands) = Ops::new("shop");
    for number in 0..20 {
        let name = TableName::new("public", format!("t{number:02}"));
        ops.table(&name).failed(&Error::operator(format!("reason {number:02}")));
    }
    let reasons = ops.report().reasons;
    assert_eq!(reasons.len(), 6);
    assert_eq!(reasons[5].subject, "public.t05 and 14 more tables");
}

#[tokio::test]
async fn a_port_in_use_is_told_with_address_and_key() {
    let taken = Server::bind("127.0.0.1:0").await.unwrap();
    let address = taken.address().to_string();
    let error = Server::bind(&address).await.unwrap_err();
    assert_eq!(error.class(), crate::runtime::Class::Operator);
    let message = error.to_string();
    assert!(message.contains(&address) && message.contains("[ops] listen"), "{message}");
    assert!(message.contains("Choose a free port"), "{message}");
}

#[tokio::test]
async fn the_page_escapes_names_filters_tables_and_asks_nobody_else() {
    let endpoint = Endpoint::start().await;
    let evil = TableName::new("public", "<script>alert('x')</script>");
    endpoint.ops.table(&evil).failed(&Error::operator("<img src=x onerror=alert(1)>"));
    for number in 0..300 {
        endpoint.ops.table(&TableName::new("public", format!("t{number}")));
    }
    let (code, page) = endpoint.get("/").await;
    assert_eq!(code, 200);
    assert!(!page.contains("<script>alert") && !page.contains("<img"), "names are escaped");
    assert!(page.contains("&lt;script&gt;alert"), "and shown");
    assert!(!page.contains("http://") && !page.contains("https://"), "nothing is loaded from elsewhere");
    assert_eq!(page.matches("<td>public.t").count(), 99);
    let (_, page) = endpoint.get("/?all=1").await;
    assert_eq!(page.matches("<td>public.t").count(), 300);
    let (_, page) = endpoint.get("/?table=T29").await;
    assert_eq!(page.matches("<td>public.t29").count(), 11);
    assert_eq!(endpoint.get("/?all=%22%3E%3Cscript%3E").await.0, 200);
    endpoint.stop().await;
}

#[tokio::test]
async fn metrics_are_what_prometheus_accepts() {
    let endpoint = Endpoint::start().await;
    let ops = &endpoint.ops;
    ops.component("source").ok();
    ops.source().heard(Lsn(1));
    ops.source().set_slot(Some(slot(1, 2)));
    ops.log().set_size(1, 2);
    ops.days().cut_due(1);
    ops.days().cut_made(day("2026-11-20"), 1, []);
    ops.days().published(day("2026-11-20"));
    for name in ["public.a", "public.b\"\\\nc"] {
        let stats = ops.table(&table(name));
        stats.captured(5, 6, Position::default(), 1_000);
        stats.backfill_began(10);
        stats.backfilled(3, 30);
        stats.set_published(day("2026-11-20"));
        stats.set_published_bytes(7, 8);
        stats.set_premerged_bytes(9);
        stats.set_historic_tail(Some((day("2026-11-19"), 11)));
    }
    let (code, text) = endpoint.get("/metrics").await;
    assert_eq!(code, 200);
    let samples = exposition(&text);
    assert_eq!(samples["tidemark_table_changes_total{table=\"public.a\"}"], 5);
    assert_eq!(samples["tidemark_table_records_total{table=\"public.b\\\"\\\\\\nc\"}"], 6);
    assert_eq!(samples["tidemark_table_last_published_written_bytes{table=\"public.a\"}"], 7);
    assert_eq!(samples["tidemark_table_last_published_copied_bytes{table=\"public.a\"}"], 8);
    assert_eq!(samples["tidemark_table_premerged_bytes{table=\"public.a\"}"], 9);
    assert_eq!(samples["tidemark_table_deferred_changes{table=\"public.a\"}"], 11);
    let tail = samples["tidemark_table_historic_tail_ds_timestamp_seconds{table=\"public.a\"}"];
    assert_eq!(tail, 1_763_510_400 + 365 * 86_400);
    assert_eq!(samples["tidemark_day_last_published_ds_timestamp_seconds"], 1_763_596_800 + 365 * 86_400);
    assert_eq!(samples["tidemark_component_state{component=\"source\",state=\"ok\"}"], 1);
    assert!(samples["process_resident_memory_bytes"] > 1_000_000);
    endpoint.stop().await;
}

/// A strict reading of the text format, with promtool's rules on names: each family once, HELP then TYPE then
/// samples; counters end in `_total`, gauges do not; base units only; no series twice.
fn exposition(text: &str) -> BTreeMap<String, i64> {
    let (mut samples, mut families) = (BTreeMap::new(), BTreeSet::new());
    let (mut help, mut family, mut kind) = (String::new(), String::new(), String::new());
    assert!(text.ends_with('\n'));
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            let (name, words) = rest.split_once(' ').unwrap();
            assert!(words.len() > 5 && words.ends_with('.'), "{line}");
            assert!(families.insert(name.to_owned()), "{name} appears twice");
            name.clone_into(&mut help);
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, word) = rest.split_once(' ').unwrap();
            assert_eq!(name, help, "TYPE follows its HELP");
            assert!(matches!(word, "gauge" | "counter"), "{line}");
            assert_eq!(word == "counter", name.ends_with("_total"), "{line}");
            assert!(name.starts_with("tidemark_") || name.starts_with("process_"), "{line}");
            for unit in ["_ms", "_millis", "_kb", "_mb", "_mib", "_minutes", "_hours", "_percent"] {
                assert!(!name.contains(unit), "{name} is not in a base unit");
            }
            (family, kind) = (name.to_owned(), word.to_owned());
        } else {
            let (series, value) = line.rsplit_once(' ').unwrap();
            let name = series.split('{').next().unwrap();
            assert_eq!(name, family, "a sample outside of its family");
            assert!(name.bytes().all(|b| b.is_ascii_lowercase() || b == b'_'), "{name}");
            labels(&series[name.len()..]);
            let value: f64 = value.parse().unwrap();
            assert!(value.is_finite() && (kind == "gauge" || value >= 0.0), "{line}");
            assert!(samples.insert(series.to_owned(), value as i64).is_none(), "{series} appears twice");
        }
    }
    samples
}

fn labels(text: &str) {
    if text.is_empty() {
        return;
    }
    let mut rest = text.strip_prefix('{').unwrap().strip_suffix('}').unwrap();
    while !rest.is_empty() {
        let (name, after) = rest.split_once("=\"").unwrap();
        assert!(!name.is_empty() && name.bytes().all(|b| b.is_ascii_lowercase() || b == b'_'), "{text}");
        let mut escaped = false;
        let end = after.bytes().position(|b| {
            assert!(!escaped || matches!(b, b'\\' | b'"' | b'n'), "{text}");
            let ends = b == b'"' && !escaped;
            escaped = b == b'\\' && !escaped;
            ends
        });
        rest = &after[end.unwrap() + 1..];
        rest = rest.strip_prefix(',').unwrap_or(rest);
    }
}
