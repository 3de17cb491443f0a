//! `[coordinator]` and `[coordinator.zookeeper]`.

use super::document::{Document, Section};
use super::{CoordinatorConfig, CoordinatorKind, StateConfig, ZookeeperConfig, check};

pub(super) fn read(document: &Document<'_>, state: &StateConfig) -> CoordinatorConfig {
    let section = document.section("coordinator");
    let words = [("embedded", false), ("zookeeper", true)];
    let is_zookeeper = section.text("kind", |text| check::word(text, &words, &[])).unwrap_or(false);
    let path = section.text("path", check::path).unwrap_or_else(|| state.dir.join("coordinator.db"));
    let zookeeper = zookeeper(&document.section("coordinator.zookeeper"), is_zookeeper);
    CoordinatorConfig {
        kind: if is_zookeeper {
            CoordinatorKind::Zookeeper(zookeeper)
        } else {
            CoordinatorKind::Embedded { path }
        },
        lease_ttl_ms: section.integer("lease_ttl_ms", "milliseconds", 1000, 600_000, 10_000),
    }
}

/// Checked, whether it is needed or not.
fn zookeeper(section: &Section<'_, '_>, needed: bool) -> ZookeeperConfig {
    let servers = section.list("servers", server).unwrap_or_default();
    if needed && servers.is_empty() && (!section.has("servers") || section.is_empty_list("servers")) {
        let text = "missing; expected addresses of servers, such as [\"zk-1.example.com:2181\"]";
        section.note("servers", text.into());
    }
    let user = section.text("user", |text| {
        let fits = !text.is_empty() && !text.contains(':');
        if fits { Ok(text.to_owned()) } else { Err("a name without a colon".to_owned()) }
    });
    let password = section.secret("password", "password_file");
    if password.is_some() && user.is_none() && !section.has("user") {
        section.note("user", "missing; expected one beside the password".into());
    }
    ZookeeperConfig {
        servers,
        root: section.text("root", root).unwrap_or_else(|| "/tidemark".to_owned()),
        session_timeout_ms: section.integer("session_timeout_ms", "milliseconds", 1000, 600_000, 10_000),
        user,
        password,
    }
}

fn server(text: &str) -> Result<String, String> {
    let fits = text.rsplit_once(':').is_some_and(|(host, port)| {
        !host.is_empty() && !text.contains([',', ' ', '/', '@']) && port.parse::<u16>().is_ok()
    });
    if fits { Ok(text.to_owned()) } else { Err("host:port, such as \"zk-1.example.com:2181\"".to_owned()) }
}

fn root(text: &str) -> Result<String, String> {
    let plain = |part: &str| {
        !part.is_empty() && part != "." && part != ".." && !part.contains(|c: char| c.is_control())
    };
    let fits = text
        .strip_prefix('/')
        .is_some_and(|rest| rest.split('/').all(plain) && !text.starts_with("/zookeeper"));
    if fits { Ok(text.to_owned()) } else { Err("a path such as \"/tidemark\"".to_owned()) }
}
