//! The configuration itself.

use super::connector::{Connector, PASSWORD};
use crate::support::free_port;

fn url() -> String {
    format!("postgres://me:{PASSWORD}@127.0.0.1:{}/shop", free_port())
}

#[test]
fn a_url_that_cannot_be_parsed_leaves_with_2() {
    for (url, word) in [
        (format!("mysql://me:{PASSWORD}@db/shop"), "postgres"),
        (format!("postgres://me:{PASSWORD}@db:port/shop"), "port"),
        (format!("postgres://me:{PASSWORD}@db/shop?sslmode=maybe"), "sslmode"),
        (format!("postgres://me:{PASSWORD}@db/shop?no_such_thing=1"), "no_such_thing"),
    ] {
        let connector = Connector::with_url(&url, "");
        for command in ["run", "check", "setup"] {
            connector.refused(&[command], 2, &["[source] url", word]);
        }
    }
}

#[test]
fn an_unknown_key_is_named_with_its_line_and_the_nearest_known_one() {
    let connector = Connector::with_url(&url(), "sloot = \"x\"\n");
    connector.refused(&["run"], 2, &["connector.toml: line 4", "sloot", "did you mean `slot`?"]);
}

#[test]
fn all_that_is_wrong_with_a_configuration_is_told_at_once() {
    let more = "slot = \"Not A Slot\"\nbackfill = \"some\"\n[lake]\nurl = \"s3://Bank\"\nformat = \"avro\"\n\
                [cut]\ntime_zone = \"Mars/Olympus\"\n[log]\nkind = \"pulsar\"\n[nonsense]\n";
    let connector = Connector::with_url(&url(), more);
    let words =
        ["slot", "backfill", "[lake] url", "avro", "Mars/Olympus", "pulsar", "nonsense", "7 problems"];
    connector.refused(&["run"], 2, &words);
}

#[test]
fn a_configuration_that_cannot_be_read_leaves_with_2() {
    let connector = Connector::with_url(&url(), "");
    let file = connector.folder().join("connector.toml");
    std::fs::remove_file(&file).unwrap();
    connector.refused(&["run"], 2, &["connector.toml: there is no such file", "--config"]);
    std::fs::create_dir(&file).unwrap();
    connector.refused(&["run"], 2, &["connector.toml: cannot be read"]);
    std::fs::remove_dir(&file).unwrap();
    std::fs::write(&file, b"[source]\nurl = \"\xff\"\n").unwrap();
    connector.refused(&["run"], 2, &["connector.toml: cannot be read", "UTF-8"]);
    std::fs::write(&file, "[source\nurl = 1").unwrap();
    connector.refused(&["run"], 2, &["connector.toml: line 1"]);
}

#[test]
fn a_secret_file_that_is_missing_is_named() {
    let connector = Connector::with_url(&url(), "password_file = \"/nowhere/password\"\n");
    connector.refused(&["run"], 2, &["password_file", "/nowhere/password"]);
}

#[test]
fn snapshots_without_a_backfill_are_refused_as_wrong_usage() {
    let connector = Connector::with_url(&url(), "backfill = \"none\"\n");
    connector.refused(&["run"], 2, &["[source] backfill", "tidemark capture"]);
}
