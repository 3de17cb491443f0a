//! The command line as a script sees it: exit codes, stdout, stderr.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Output, Stdio};

use tidemark::ops::{Command as Asked, DayTable, Ops, Server};
use tidemark::runtime::{Error, Shutdown};

fn tidemark(folder: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tidemark"));
    command.current_dir(folder).args(arguments).stdin(Stdio::null());
    for name in ["RUST_LOG", "TIDEMARK_LOG", "NO_COLOR"] {
        command.env_remove(name);
    }
    command
}

fn run(folder: &Path, arguments: &[&str]) -> (i32, String, String) {
    let Output { status, stdout, stderr } = tidemark(folder, arguments).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (status.code().unwrap(), text(stdout), text(stderr))
}

fn folder_with(connector: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("connector.toml"), connector).unwrap();
    folder
}

const URL: &str = "[source]\nurl = \"postgresql://me:geheim@db.example.com/shop\"\n";

/// A process that answers at a port of its own, with a busy picture.
struct Running {
    runtime: tokio::runtime::Runtime,
    shutdown: Shutdown,
    folder: tempfile::TempDir,
}

impl Running {
    fn start() -> Self {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let (ops, mut commands) = Ops::new("shop");
        let server = runtime.block_on(Server::bind("127.0.0.1:0")).unwrap();
        let folder = folder_with(&format!("{URL}[ops]\nlisten = \"{}\"\n", server.address()));
        let shutdown = Shutdown::new();
        ops.component("source").ok();
        ops.component("lake").failed(&Error::operator("the disk is full").mend("Free some space."));
        ops.table(&"public.orders".parse().unwrap()).dead_lettered(3);
        ops.table(&"public.customers".parse().unwrap());
        ops.days().cut_made("2026-11-20".parse().unwrap(), 0, ["public.orders".parse().unwrap()]);
        ops.days().table(
            "2026-11-20".parse().unwrap(),
            &"public.orders".parse().unwrap(),
            DayTable::Published { rows: 1, bytes: 1 },
        );
        ops.days().published("2026-11-20".parse().unwrap());
        runtime.spawn(server.serve(ops, shutdown.clone()));
        runtime.spawn(async move {
            while let Some(Asked::Cut { ds, reply }) = commands.recv().await {
                let refused =
                    || Error::operator("ds=2026-11-20 has its cut already").mend("Choose another day.");
                let answer = ds.map_or_else(|| Ok("2026-11-22".parse().unwrap()), |_| Err(refused()));
                reply.send(answer).unwrap();
            }
        });
        Self { runtime, shutdown, folder }
    }

    fn run(&self, arguments: &[&str]) -> (i32, String, String) {
        run(self.folder.path(), arguments)
    }

    fn stop(self) {
        self.shutdown.raise();
        self.runtime.shutdown_timeout(std::time::Duration::from_secs(10));
    }
}

#[test]
fn help_and_version_leave_with_0() {
    let folder = tempfile::tempdir().unwrap();
    let (code, out, _) = run(folder.path(), &["--help"]);
    assert_eq!(code, 0);
    for command in [
        "run",
        "capture",
        "deliver",
        "check",
        "setup",
        "status",
        "cut",
        "wait",
        "backfill",
        "pause",
        "resume",
        "verify",
        "dead-letters",
        "expire",
        "replay",
    ] {
        assert!(out.contains(&format!("  {command} ")), "{command} is not in\n{out}");
    }
    assert!(!out.contains("redrive"), "redrive is a stub");
    let (code, out, _) = run(folder.path(), &["--version"]);
    assert_eq!((code, out), (0, format!("tidemark {}\n", env!("CARGO_PKG_VERSION"))));
}

#[test]
fn wrong_usage_leaves_with_2() {
    let folder = folder_with(URL);
    for arguments in [
        &[][..],
        &["rum"],
        &["status", "extra"],
        &["wait"],
        &["wait", "--ds", "yesterday"],
        &["wait", "--ds", "2026-11-20", "--timeout", "2"],
        &["wait", "--ds", "2026-11-20", "--table", "orders"],
        &["cut", "--ds", "2026-11-31"],
        &["dead-letters"],
    ] {
        let (code, out, err) = run(folder.path(), arguments);
        assert_eq!((code, out.as_str()), (2, ""), "{arguments:?}: {err}");
        assert!(!err.is_empty() && !err.contains("panicked"), "{arguments:?}: {err}");
    }
}

#[test]
fn a_wrong_configuration_leaves_with_2_and_tells_all_of_it_and_no_secret() {
    let folder = folder_with(
        "[source]\nurl = \"mysql://me:geheim@db/shop\"\ntabels = [\"*.*\"]\n[cut]\ntime_zone = \"${NOT_SET}\"\n",
    );
    let (code, out, err) = run(folder.path(), &["status"]);
    assert_eq!((code, out.as_str()), (2, ""));
    assert!(err.contains("./connector.toml: 3 problems"), "{err}");
    assert!(err.contains("did you mean `tables`?"), "{err}");
    assert!(err.contains("[cut] time_zone: the environment variable NOT_SET is not set"), "{err}");
    assert!(err.contains("\n→ "), "{err}");
    assert!(!err.contains("geheim"), "{err}");
}

#[test]
fn a_missing_configuration_leaves_with_2_and_shows_the_smallest_one() {
    let folder = tempfile::tempdir().unwrap();
    let (code, _, err) = run(folder.path(), &["status", "--config", "other.toml"]);
    assert_eq!(code, 2);
    assert!(err.contains("other.toml: there is no such file"), "{err}");
    assert!(err.contains("[source]\n      url = "), "{err}");
}

#[test]
fn status_and_cut_leave_with_1_when_nothing_answers() {
    // Bound, so that nobody else takes the port, and not listening.
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let free = socket.local_addr().unwrap();
    let folder = folder_with(&format!("{URL}[ops]\nlisten = \"{free}\"\n"));
    for command in ["status", "cut"] {
        let (code, out, err) = run(folder.path(), &[command]);
        assert_eq!((code, out.as_str()), (1, ""), "{err}");
        assert!(err.contains(&format!("error: nothing answers at http://{free} ([ops] listen)")), "{err}");
        assert!(err.contains("→ Start `tidemark run`"), "{err}");
    }
}

#[test]
fn status_tells_what_is_stuck_and_what_to_do() {
    let running = Running::start();
    let (code, out, err) = running.run(&["status"]);
    assert_eq!((code, err.as_str()), (0, ""));
    assert!(out.starts_with("shop: failing  Tidemark "), "{out}");
    let (_, stuck) = out.split_once("stuck    lake: the disk is full (").expect(&out);
    let (since, mend) = stuck.split_once(')').unwrap();
    assert!(since.ends_with(" s") && mend.starts_with("\n         → Free some space.\n"), "{out}");
    assert!(!out.contains('\u{1b}'), "colours without a terminal");
    let orders = out.lines().position(|line| line.starts_with("public.orders")).unwrap();
    let customers = out.lines().position(|line| line.starts_with("public.customers")).unwrap();
    assert!(orders < customers, "trouble comes first\n{out}");

    let (_, out, _) = running.run(&["status", "--table", "cust"]);
    assert!(out.contains("public.customers") && !out.contains("\npublic.orders"), "{out}");

    let (code, out, _) = running.run(&["--json", "status"]);
    let json: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!(
        (code, &json["status"], &json["tables"]["public.orders"]["dead_letters"]),
        (0, &"failing".into(), &3.into())
    );
    running.stop();
}

#[test]
fn cut_tells_the_day_or_why_not() {
    let running = Running::start();
    let (code, out, _) = running.run(&["cut"]);
    assert_eq!(code, 0);
    assert!(out.contains("ds=2026-11-22"), "{out}");
    assert_eq!(running.run(&["cut", "--json"]).1, "{\"ds\":\"2026-11-22\"}\n");
    let (code, out, err) = running.run(&["cut", "--ds", "2026-11-20"]);
    assert_eq!((code, out.as_str()), (1, ""));
    assert_eq!(err, "error: ds=2026-11-20 has its cut already\n→ Choose another day.\n");
    running.stop();
}

#[test]
fn what_answers_and_is_not_tidemark_is_told() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let folder = folder_with(&format!("{URL}[ops]\nlisten = \"{}\"\n", listener.local_addr().unwrap()));
    let other = std::thread::spawn(move || {
        use std::io::Write;
        let (stream, _) = listener.accept().unwrap();
        let mut lines = BufReader::new(&stream).lines();
        while !lines.next().unwrap().unwrap().is_empty() {}
        (&stream).write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello").unwrap();
    });
    let (code, _, err) = run(folder.path(), &["status"]);
    other.join().unwrap();
    assert_eq!(code, 1);
    assert!(err.contains("is not what was expected") && err.contains("→ Is it Tidemark"), "{err}");
}

#[test]
fn a_reader_that_leaves_early_is_no_error() {
    let running = Running::start();
    let mut child = tidemark(running.folder.path(), &["status"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    running.stop();
}

/// The variables that a service of `compose.yaml` gets.
fn environment(service: &str) -> Vec<(String, String)> {
    let text = include_str!("compose.yaml");
    let indented =
        |line: &str, by: usize| line.len() - line.trim_start().len() == by && !line.trim().is_empty();
    let service = text.lines().skip_while(|line| *line != format!("  {service}:")).skip(1);
    let lines = service.take_while(|line| !indented(line, 2)).skip_while(|line| *line != "    environment:");
    let pairs =
        lines.skip(1).take_while(|line| indented(line, 6)).filter_map(|line| line.trim().split_once(": "));
    pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
}

#[test]
fn the_configuration_of_the_compose_file_is_one_that_is_understood() {
    let config = include_str!("compose.toml");
    let folder = folder_with(config);
    for (service, format) in [("tidemark", "json"), ("tidemark-avro", "avro")] {
        let given = environment(service);
        assert!(given.contains(&("ENVELOPE_FORMAT".to_owned(), format.to_owned())), "{service}: {given:?}");
        // Nothing runs behind these addresses: a configuration that is not understood leaves with 2, before it asks.
        let output =
            tidemark(folder.path(), &["wait", "--ds", "2026-11-20", "--timeout", "0s"]).envs(given).output();
        let output = output.unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{service}: {said}");
        assert!(said.contains("ds=2026-11-20 was not published"), "{service}: {said}");
    }
    let (code, _, said) = run(folder.path(), &["wait", "--ds", "2026-11-20", "--timeout", "0s"]);
    assert!(code == 2 && said.contains("SOURCE_NAME is not set"), "{code}: {said}");
}
