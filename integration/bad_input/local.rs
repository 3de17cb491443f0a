//! This machine: folders, disks, files and ports.

use std::net::TcpListener;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::Path;
use std::process::Command;

use rustix::process::geteuid;

use super::connector::{CSV, Connector, PASSWORD, server_with_table};
use crate::support::{SmallDisk, again_in_a_namespace, free_port};

fn lake_at(folder: &Path) -> String {
    format!("{CSV}url = \"file://{}\"\n", folder.display())
}

#[tokio::test]
async fn a_file_where_the_lake_s_folder_belongs_is_told_before_anything_is_made() {
    let server = server_with_table().await;
    let connector = Connector::new(&server, "");
    let lake = connector.folder().join("lake");
    std::fs::write(&lake, "in the way").unwrap();
    let more = lake_at(&lake);
    let url = server.url_as(&format!("postgres:{PASSWORD}"), "postgres");
    connector.configure(&url, &more);
    let path = lake.display().to_string();
    let ended = connector.refused(&["run"], 1, &["lake", &path]);
    assert!(!ended.err.contains("backfill"), "{}", ended.err);
    let check = connector.run(&["check"]);
    assert!(check.code == 1 && check.out.contains("fail  lake"), "{}", check.out);
    std::fs::remove_file(&lake).unwrap();
    let running = connector.stream();
    connector.publishes_what_postgres_holds(&server, &["t"]).await;
    running.stop();
}

#[tokio::test]
async fn a_lake_that_cannot_be_written_is_told_at_once() {
    let Some(disk) = SmallDisk::mount(16 << 20) else {
        return again_in_a_namespace(module_path!(), "a_lake_that_cannot_be_written_is_told_at_once");
    };
    let server = server_with_table().await;
    let connector = Connector::new(&server, &lake_at(disk.path()));
    disk.remount("ro");
    let path = disk.path().display().to_string();
    let ended = connector.refused(&["run"], 1, &[&path, "Read-only file system", "the right to write"]);
    assert!(!ended.err.contains("backfill"), "{}", ended.err);
    disk.remount("rw");
    let running = connector.stream();
    connector.publishes_what_postgres_holds(&server, &["t"]).await;
    running.stop();
}

#[tokio::test]
async fn folders_of_another_user_are_told_with_the_right_that_is_missing() {
    let server = server_with_table().await;
    let connector = Connector::new(&server, CSV);
    let_others_in(connector.folder());
    // The binary may lie below a folder which only root may enter.
    let binary = connector.folder().join("tidemark");
    // By another program: a child that another thread starts meanwhile would hold it open, and it could not be run.
    let mut copy = Command::new("cp");
    copy.arg("--preserve=mode").arg(env!("CARGO_BIN_EXE_tidemark")).arg(&binary);
    assert!(copy.status().unwrap().success(), "{copy:?}");
    let as_nobody = || {
        let mut command = Command::new("setpriv");
        if geteuid().is_root() {
            command.args(["--reuid", "65534", "--regid", "65534", "--clear-groups"]);
        }
        command.arg(&binary).arg("run").current_dir(connector.folder()).env_remove("RUST_LOG");
        command
    };
    let refused = |words: &[&str]| {
        let ended = connector.start_command(as_nobody()).ended();
        ended.says(1, words);
        assert!(!ended.err.contains("backfill"), "{}", ended.err);
    };
    keep_out(connector.folder());
    refused(&["cannot create the folder tidemark-data", "Permission denied"]);
    let_others_in(connector.folder());
    std::fs::create_dir(connector.state()).unwrap();
    keep_out(&connector.state());
    refused(&["tidemark-data/log.db", "the right to write this file and its folder"]);
    give(&connector.state());
    let lake = connector.state().join("lake");
    std::fs::create_dir(&lake).unwrap();
    keep_out(&lake);
    refused(&["tidemark-data/lake", "Permission denied", "the right to write"]);
    give(&lake);
    let mut running = connector.start_command(as_nobody());
    running.wait_for("\"message\":\"streaming\"");
    connector.publishes_what_postgres_holds(&server, &["t"]).await;
    running.stop();
    let file = connector.folder().join("connector.toml");
    set_mode(&file, if geteuid().is_root() { 0o600 } else { 0 });
    let ended = connector.start_command(as_nobody()).ended();
    ended.says(2, &["connector.toml: cannot be read: Permission denied"]);
}

fn set_mode(path: &Path, mode: u32) {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
}

/// The binary may read the folder, and enter it.
fn let_others_in(folder: &Path) {
    set_mode(folder, 0o755);
}

/// The binary may not write to the folder. Where it is not somebody else, since only root can run it so, its own folder has
/// no right to write.
fn keep_out(folder: &Path) {
    set_mode(folder, if geteuid().is_root() { 0o755 } else { 0o555 });
}

/// The folder is the binary's.
fn give(folder: &Path) {
    set_mode(folder, 0o755);
    if geteuid().is_root() {
        chown(folder, Some(65534), Some(65534)).unwrap();
    }
}

/// 64 KiB which do not compress, in each of so many rows.
fn noise(rows: std::ops::Range<u32>) -> String {
    format!(
        "INSERT INTO wide SELECT n, (SELECT string_agg(md5((n * 100000 + i)::text), '') FROM generate_series(1, 2048) i) \
         FROM generate_series({}, {}) n",
        rows.start,
        rows.end - 1
    )
}

#[tokio::test]
async fn a_full_disk_under_the_log_stops_the_process_and_nothing_is_lost() {
    let Some(disk) = SmallDisk::mount(96 << 20) else {
        return again_in_a_namespace(
            module_path!(),
            "a_full_disk_under_the_log_stops_the_process_and_nothing_is_lost",
        );
    };
    let server = server_with_table().await;
    let oracle = server.connect().await;
    oracle.batch_execute("CREATE TABLE wide (id int PRIMARY KEY, x text)").await.unwrap();
    let more = format!("{CSV}[log.embedded]\npath = \"{}\"\n", disk.path().join("log.db").display());
    let connector = Connector::new(&server, &more);
    let running = connector.stream();
    let ballast = disk.path().join("ballast");
    std::fs::write(&ballast, vec![1; 88 << 20]).unwrap();
    oracle.batch_execute(&noise(0..300)).await.unwrap();
    let ended = running.ended();
    ended.says(
        1,
        &["cannot append to the log: no space is left for", "log.db; nothing was written", "→ Free space"],
    );
    connector.refused(&["run"], 1, &["no space is left for"]);

    std::fs::remove_file(&ballast).unwrap();
    let running = connector.stream();
    oracle.batch_execute("INSERT INTO t VALUES (11)").await.unwrap();
    connector.publishes_what_postgres_holds(&server, &["t", "wide"]).await;
    running.stop();
}

#[tokio::test]
async fn a_full_disk_under_the_lake_does_not_stop_capture_and_the_day_comes_when_there_is_space() {
    let Some(disk) = SmallDisk::mount(32 << 20) else {
        return again_in_a_namespace(
            module_path!(),
            "a_full_disk_under_the_lake_does_not_stop_capture_and_the_day_comes_when_there_is_space",
        );
    };
    let server = server_with_table().await;
    let oracle = server.connect().await;
    oracle.batch_execute("CREATE TABLE wide (id int PRIMARY KEY, x text)").await.unwrap();
    let connector = Connector::new(&server, &lake_at(disk.path()));
    let mut running = connector.stream();
    let ballast = disk.path().join("ballast");
    std::fs::write(&ballast, vec![1; (32 << 20) - (256 << 10)]).unwrap();
    oracle.batch_execute(&noise(0..100)).await.unwrap();
    let cut = connector.run(&["cut", "--json"]);
    assert_eq!(cut.code, 0, "{cut:?}");
    running.wait_for("No space left on device");
    let status = connector.run(&["status"]);
    assert!(status.code == 0 && status.out.contains("Free some space"), "{}", status.out);
    oracle.batch_execute("INSERT INTO t VALUES (11)").await.unwrap();

    std::fs::remove_file(&ballast).unwrap();
    let day: serde_json::Value = serde_json::from_str(&cut.out).unwrap();
    let ds = day["ds"].as_str().unwrap();
    connector.wait_published(ds);
    connector.holds(&server, ds, &[("t", "id <= 10"), ("wide", "true")]).await;
    running.stop();
}

#[tokio::test]
async fn a_log_at_its_limit_names_the_key_and_goes_on_as_soon_as_deliver_makes_room() {
    let server = server_with_table().await;
    let oracle = server.connect().await;
    oracle.batch_execute("CREATE TABLE wide (id int PRIMARY KEY, x text)").await.unwrap();
    let toml = format!("{CSV}[log.embedded]\nbytes_max = 67_108_864\n");
    let connector = Connector::new(&server, &toml);
    let mut capture = connector.start(&["capture"]);
    capture.wait_for("\"message\":\"streaming\"");
    oracle.batch_execute(&noise(0..1100)).await.unwrap();
    capture.wait_for("has come to its limit, [log.embedded] bytes_max = 67108864");
    let status = connector.run(&["status"]);
    assert!(status.out.contains("raise bytes_max"), "{status:?}");

    // Deliver, in a process of its own, is all that it takes: nothing is started again.
    let file = std::fs::read_to_string(connector.folder().join("connector.toml")).unwrap();
    let other = file.replace(&connector.listen().to_string(), &free_port().to_string());
    std::fs::write(connector.folder().join("other.toml"), other).unwrap();
    let deliver = connector.start(&["deliver", "--config", "other.toml"]);
    connector.publishes_what_postgres_holds(&server, &["t", "wide"]).await;
    deliver.stop();
    capture.stop();
}

#[tokio::test]
async fn a_first_copy_that_does_not_fit_into_the_log_goes_on_as_deliver_makes_room() {
    let server = server_with_table().await;
    let oracle = server.connect().await;
    oracle.batch_execute("CREATE TABLE wide (id int PRIMARY KEY, x text)").await.unwrap();
    oracle.batch_execute(&noise(0..1100)).await.unwrap();
    let connector = Connector::new(&server, &format!("{CSV}[log.embedded]\nbytes_max = 67_108_864\n"));
    let running = connector.stream();
    connector.publishes_what_postgres_holds(&server, &["t", "wide"]).await;
    running.stop();
}

#[tokio::test]
async fn a_port_in_use_is_told_before_anything_is_made() {
    let server = server_with_table().await;
    let connector = Connector::new(&server, CSV);
    let address = format!("127.0.0.1:{}", connector.listen());
    let taken = TcpListener::bind(&address).unwrap();
    let ended = connector.refused(&["run"], 1, &[&address, "[ops] listen", "in use", "Choose a free port"]);
    assert!(!ended.err.contains("backfill") && !connector.state().exists(), "{}", ended.err);
    drop(taken);
    let running = connector.stream();
    connector.publishes_what_postgres_holds(&server, &["t"]).await;
    running.stop();
}

#[tokio::test]
async fn a_second_process_does_no_harm_to_the_first() {
    let server = server_with_table().await;
    let connector = Connector::new(&server, CSV);
    let running = connector.stream();
    connector.refused(&["run"], 1, &["[ops] listen", "perhaps another Tidemark"]);
    let file = std::fs::read_to_string(connector.folder().join("connector.toml")).unwrap();
    let other = file.replace(&connector.listen().to_string(), &free_port().to_string());
    std::fs::write(connector.folder().join("other.toml"), other).unwrap();
    let mut other = connector.start(&["run", "--config", "other.toml"]);
    other.wait_for("the slot is in use, waiting for it: server process");
    other.stop();
    server.connect().await.batch_execute("INSERT INTO t VALUES (11)").await.unwrap();
    connector.publishes_what_postgres_holds(&server, &["t"]).await;
    running.stop();
}

#[tokio::test]
async fn a_log_file_that_is_not_ours_or_damaged_is_left_alone() {
    let server = server_with_table().await;
    let connector = Connector::new(&server, CSV);
    std::fs::create_dir(connector.state()).unwrap();
    let log = connector.state().join("log.db");
    let notes = "my notes, long enough to be taken for the header of a database file\n".repeat(20);
    std::fs::write(&log, &notes).unwrap();
    for command in ["run", "capture", "deliver"] {
        connector.refused(&[command], 1, &["tidemark-data/log.db is damaged or no file of Tidemark's"]);
    }
    assert_eq!(std::fs::read_to_string(&log).unwrap(), notes, "it was written to");
    std::fs::remove_file(&log).unwrap();

    connector.stream().stop();
    // All of it, with its write-ahead log, from which SQLite would mend the page.
    let files = ["log.db", "log.db-wal", "log.db-shm"].map(|name| connector.state().join(name));
    let good = files.each_ref().map(|file| std::fs::read(file).ok());
    let mut bad = good[0].clone().unwrap();
    bad[..100].fill(0x55);
    std::fs::write(&log, &bad).unwrap();
    let _ = (std::fs::remove_file(&files[1]), std::fs::remove_file(&files[2]));
    connector.refused(&["run"], 1, &["log.db is damaged", "Restore it"]);
    for (file, bytes) in files.iter().zip(&good) {
        let _ = std::fs::remove_file(file);
        if let Some(bytes) = bytes {
            std::fs::write(file, bytes).unwrap();
        }
    }
    let running = connector.stream();
    connector.publishes_what_postgres_holds(&server, &["t"]).await;
    running.stop();
}
