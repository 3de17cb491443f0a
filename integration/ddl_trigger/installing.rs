//! `tidemark setup`, `setup --uninstall` and `check`.

use std::process::Command;

use tidemark::change::TableName;
use tidemark::postgres::ddl::{self, DdlTrigger, TriggerUse};
use tidemark::postgres::preflight::{self, Finding, Level, PreflightSettings};
use tidemark::postgres::setup;
use tidemark::postgres::slot::Failover;
use tidemark::postgres::wire::{Client, sqlstate};

use super::source::sql;
use crate::support::{MAJORS, Postgres};

const WANTED: &(dyn Fn(&TableName) -> bool + Sync) = &|_| true;

fn settings(ddl_trigger: TriggerUse) -> PreflightSettings<'static> {
    PreflightSettings {
        slot: "s",
        publication: "p",
        wanted: WANTED,
        copied_where: &|_| None,
        failover: Failover::Auto,
        create_missing: false,
        ddl_trigger,
    }
}

async fn check(client: &mut Client, ddl_trigger: TriggerUse) -> Finding {
    let findings = preflight::check(client, &settings(ddl_trigger)).await.unwrap();
    findings.into_iter().find(|finding| finding.subject == "event trigger").unwrap()
}

async fn installed(client: &mut Client) -> DdlTrigger {
    DdlTrigger::load(client).await.unwrap()
}

/// Runs what setup would, and gives what it left out.
async fn set_up(client: &mut Client, ddl_trigger: TriggerUse) -> Vec<String> {
    let plan = setup::plan(client, &settings(ddl_trigger)).await.unwrap();
    setup::apply(client, &plan).await.unwrap()
}

#[tokio::test]
async fn setup_installs_mends_and_upgrades_the_trigger_and_check_tells_how_it_is() {
    for major in MAJORS {
        println!("PostgreSQL {major}");
        let server = Postgres::version(major).start().await;
        let mut client = sql(&server, "postgres", "postgres").await;
        client.execute("CREATE TABLE public.t (id int PRIMARY KEY)").await.unwrap();
        let found = check(&mut client, TriggerUse::Auto).await;
        assert_eq!(found.level, Level::Warn);
        assert!(found.message.contains("the statement's text"), "{}", found.message);
        assert!(found.mend.unwrap().contains("tidemark setup"));
        assert_eq!(check(&mut client, TriggerUse::On).await.level, Level::Fail);
        assert_eq!(check(&mut client, TriggerUse::Off).await.level, Level::Ok);
        set_up(&mut client, TriggerUse::Off).await;
        assert_eq!(installed(&mut client).await, DdlTrigger::Missing);
        assert!(set_up(&mut client, TriggerUse::Auto).await.is_empty());
        assert_eq!(installed(&mut client).await, DdlTrigger::Current);
        assert!(setup::plan(&mut client, &settings(TriggerUse::On)).await.unwrap().statements.is_empty());
        assert_eq!(check(&mut client, TriggerUse::On).await.level, Level::Ok);
        assert_eq!(check(&mut client, TriggerUse::Off).await.level, Level::Warn);

        let current = ddl::install_sql(client.server_version());
        let older = current.replace("-- version 1", "-- version 0").replace("tidemark.ddl'", "other'");
        for change in [
            "DROP EVENT TRIGGER tidemark_sql_drop",
            "ALTER FUNCTION tidemark.ddl() RESET \"DateStyle\"",
            "ALTER FUNCTION tidemark.ddl() SECURITY INVOKER",
            &older,
        ] {
            client.execute(change).await.unwrap();
            assert_eq!(installed(&mut client).await, DdlTrigger::Outdated, "after {change}");
            assert_eq!(check(&mut client, TriggerUse::Auto).await.level, Level::Warn);
            set_up(&mut client, TriggerUse::Auto).await;
            assert_eq!(installed(&mut client).await, DdlTrigger::Current, "after {change}");
        }
        client.execute("ALTER EVENT TRIGGER tidemark_table_rewrite DISABLE").await.unwrap();
        let found = check(&mut client, TriggerUse::Auto).await;
        assert!(found.level == Level::Warn && found.message.contains("switched off"), "{found:?}");
        set_up(&mut client, TriggerUse::Auto).await;
        assert_eq!(installed(&mut client).await, DdlTrigger::Disabled, "as somebody has decided");
        client.execute("ALTER EVENT TRIGGER tidemark_table_rewrite ENABLE ALWAYS").await.unwrap();
        assert_eq!(installed(&mut client).await, DdlTrigger::Current);

        client.execute(&current.replace("-- version 1", "-- version 2")).await.unwrap();
        assert_eq!(check(&mut client, TriggerUse::Auto).await.level, Level::Fail);
        set_up(&mut client, TriggerUse::Auto).await;
        assert_eq!(installed(&mut client).await, DdlTrigger::Newer(2), "a newer one is left alone");
    }
}

#[tokio::test]
async fn what_setup_made_goes_again_and_nothing_else() {
    let server = Postgres::start().await;
    let mut client = sql(&server, "postgres", "postgres").await;
    let objects = "SELECT (SELECT count(*) FROM pg_event_trigger) || ' ' || (SELECT count(*) FROM pg_proc p \
        JOIN pg_namespace n ON n.oid = p.pronamespace WHERE n.nspname = 'tidemark') || ' ' || \
        (SELECT count(*) FROM pg_namespace WHERE nspname = 'tidemark')";
    for (theirs, left) in [("SELECT 1", "0 0 0"), ("CREATE TABLE tidemark.theirs (id int)", "0 0 1")] {
        client.execute(&ddl::install_sql(client.server_version())).await.unwrap();
        assert_eq!(client.query_one(objects).await.unwrap().get(0), Some("3 1 1"));
        client.execute(theirs).await.unwrap();
        setup::uninstall(&mut client).await.unwrap();
        assert_eq!(client.query_one(objects).await.unwrap().get(0), Some(left));
        setup::uninstall(&mut client).await.unwrap();
    }
    client.execute("CREATE TABLE public.t (id int); SELECT * FROM tidemark.theirs").await.unwrap();
}

#[tokio::test]
async fn a_role_that_may_not_install_it_does_the_rest_and_is_told() {
    for major in MAJORS {
        println!("PostgreSQL {major}");
        let server = Postgres::version(major).start().await;
        let owner = server.connect().await;
        owner
            .batch_execute("CREATE ROLE r LOGIN REPLICATION; GRANT CREATE ON DATABASE postgres TO r; CREATE SCHEMA own AUTHORIZATION r")
            .await
            .unwrap();
        let mut client = sql(&server, "r", "postgres").await;
        client.execute("CREATE TABLE own.t (id int PRIMARY KEY)").await.unwrap();
        let plan = setup::plan(&mut client, &settings(TriggerUse::On)).await.unwrap();
        let error = setup::apply(&mut client, &plan).await.unwrap_err();
        assert_eq!(sqlstate(&error), Some("42501"), "{error}");
        let left_out = set_up(&mut client, TriggerUse::Auto).await;
        assert!(left_out.concat().contains("it takes a superuser"), "{left_out:?}");
        assert!(left_out.concat().contains("event trigger"), "{left_out:?}");
        let left: String = client
            .query_one("SELECT count(*) FROM pg_namespace WHERE nspname = 'tidemark'")
            .await
            .unwrap()
            .get(0)
            .unwrap()
            .into();
        assert_eq!(left, "0", "{major}: nothing is left half-way");
        let findings = preflight::check(&mut client, &settings(TriggerUse::Auto)).await.unwrap();
        let bad: Vec<_> = findings.iter().filter(|finding| finding.level == Level::Fail).collect();
        assert!(bad.is_empty(), "{bad:?}");
    }
}

#[tokio::test]
async fn the_command_prints_installs_and_takes_away() {
    let server = Postgres::start().await;
    let mut client = sql(&server, "postgres", "postgres").await;
    client.execute("CREATE TABLE public.t (id int PRIMARY KEY)").await.unwrap();
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("connector.toml");
    let state = folder.path().join("state");
    let text = format!("[source]\nurl = \"{}\"\n[state]\ndir = \"{}\"\n", server.url(), state.display());
    std::fs::write(&config, text).unwrap();
    let run = |arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tidemark"));
        let output = command.arg("--config").arg(&config).args(arguments).output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{arguments:?}: {text} {}", String::from_utf8_lossy(&output.stderr));
        text
    };
    assert!(run(&["setup", "--print"]).contains("CREATE EVENT TRIGGER tidemark_sql_drop"));
    assert_eq!(installed(&mut client).await, DdlTrigger::Missing);
    run(&["setup"]);
    assert_eq!(installed(&mut client).await, DdlTrigger::Current);
    assert!(run(&["check"]).contains("in use: DDL comes in order with the rows"));
    assert!(run(&["setup", "--uninstall", "--print"]).contains("DROP EVENT TRIGGER"));
    assert_eq!(installed(&mut client).await, DdlTrigger::Current);
    assert!(run(&["setup", "--uninstall"]).contains("pg_drop_replication_slot"));
    assert_eq!(installed(&mut client).await, DdlTrigger::Missing);
    assert!(run(&["check"]).contains("not installed"));
}
