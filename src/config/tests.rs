use std::collections::HashMap;

use super::*;
use crate::change::TableName;

fn parsed(text: &str) -> Result<Config, ConfigErrors> {
    let env: HashMap<_, _> = HashMap::from([("PGPASSWORD", "hunter2"), ("ZONE", "Asia/Dubai")]);
    Config::parse(Path::new("connector.toml"), text, &|name| env.get(name).map(|v| (*v).to_owned()))
}

fn refused(text: &str) -> String {
    parsed(text).expect_err("it was taken").to_string()
}

const MINIMAL: &str = "[source]\nurl = \"postgresql://tidemark@localhost:5432/shop\"\n";

#[test]
fn one_url_is_enough_and_the_rest_has_defaults() {
    let config = parsed(MINIMAL).unwrap();
    assert_eq!(config.source.name, "shop");
    assert_eq!(config.source.slot, "tidemark_shop");
    assert_eq!(config.source.publication, "tidemark_shop");
    assert_eq!(config.ops.listen, "127.0.0.1:8080");
    assert_eq!(config.lake.format, LakeFormat::Parquet(ParquetCompression::Zstd));
    assert_eq!(config.cut.time_zone_name(), "UTC");
    let LakeUrl::Folder(lake) = &config.lake.url else { panic!("{}", config.lake.url) };
    assert!(lake.is_absolute() && lake.ends_with("tidemark-data/lake"), "{lake:?}");
    let LogKind::Embedded(log) = &config.log.kind else { panic!("{:?}", config.log.kind) };
    assert_eq!(log.path, Path::new("tidemark-data/log.db"));
}

#[test]
fn all_problems_are_told_at_once_each_with_its_line() {
    let text = r#"
sorce = 1
[source]
url = "mysql://me:geheim@db/shop"
name = "_shop"
tabels = ["public.*"]
tables = ["orders", 7]
slot = "Shop"
password = "${NOT_SET}"
[log]
kind = "pulsar"
append_bytes_max = "4 MiB"
[lake]
format = "avro"
compression = "gzip"
url = "s3://Bank/lake"
memory_bytes_max = 1
time_zone = "Asia/Dubai"
[lake.s3]
endpoint_url = "http://store:9000"
[cut]
at = "24:00"
time_zone = "Asia/Dubay"
[opps]
listen = "localhost"
[ops]
listen = "8080"
[[table]]
exclud = true
exclude = "yes"
"#;
    let expected = r#"connector.toml: 23 problems
  line 2: sorce: unknown key
  line 4: [source] url: found a text that does not begin with postgresql:// or postgres://; expected a URL such as postgresql://tidemark@db.example.com:5432/shop (it is not shown, since it may hold a password)
  line 5: [source] name: found "_shop"; expected at most 100 letters, digits, "_" and "-", beginning with a letter or digit
  line 6: [source] tabels: unknown key; did you mean `tables`?
  line 7: [source] tables: found "orders"; expected a pattern on schema.table, such as "public.*" or "sales.order_{head,line}"
  line 7: [source] tables: found an integer; expected a string
  line 8: [source] slot: found "Shop"; expected 1 to 63 of a-z, 0-9 and "_", as Postgres wants it
  line 9: [source] password: the environment variable NOT_SET is not set; set it, or write the value
  line 11: [log] kind: found "pulsar"; expected "embedded" or "kafka"
  line 12: [log] append_bytes_max: found "4 MiB"; expected a whole number of bytes from 65536 to 67108864
  line 14: [lake] format: found "avro"; expected "parquet", "orc" or "csv"
  line 15: [lake] compression: found "gzip"; expected "zstd", "snappy" or "none" with format "parquet"
  line 16: [lake] url: found "s3://Bank/lake"; expected a bucket of 3 to 63 of a-z, 0-9, "-" and ".", such as s3://bank-lake/tidemark
  line 17: [lake] memory_bytes_max: found 1; expected a whole number of bytes from 33554432 to 1099511627776
  line 18: [lake] time_zone: unknown key; did you mean `[cut] time_zone`?
  line 20: [lake.s3] endpoint_url: found an address without TLS; expected https://, or allow_http = true beside it
  line 22: [cut] at: found "24:00"; expected a time of day such as "00:00" or "23:30"
  line 23: [cut] time_zone: found "Asia/Dubay"; expected the IANA name of a time zone that this machine knows (package tzdata), such as "Asia/Dubai"
  line 24: [opps]: unknown section; did you mean [ops]?
  line 27: [ops] listen: found "8080"; expected an address and a port, such as "127.0.0.1:8080"
  line 29: [[table]] exclud: unknown key; did you mean `exclude`?
  line 30: [[table]] exclude: found a string; expected true or false
  [[table]] match: missing; expected a pattern on schema.table, such as "public.*""#;
    assert_eq!(refused(text), expected);
}

#[test]
fn a_bucket_has_a_prefix_and_keys_that_are_never_shown() {
    let text =
        |s3: &str| format!("{MINIMAL}[lake]\nurl = \"s3://bank-lake/team/tidemark/\"\n[lake.s3]\n{s3}");
    let config = parsed(&text("access_key_id = \"AKIA\"\nsecret_access_key = \"${PGPASSWORD}\"")).unwrap();
    assert_eq!(config.lake.url.to_string(), "s3://bank-lake/team/tidemark");
    assert!(config.lake.s3.keys.is_some() && !format!("{config:?}").contains("AKIA"));
    let error = refused(&text(
        "secret_access_key = \"a\"\nsse_kms_key_id = \"k\"\nserver_side_encryption = \"AES256\"\nforce_path_style = 1",
    ));
    for told in
        ["given without access_key_id", "sse_kms_key_id: given without", "force_path_style: found an integer"]
    {
        assert!(error.contains(told), "{told} is not told:\n{error}");
    }
    for (endpoint, taken) in [
        ("https://10.0.0.7:9000", false),
        ("https://10.0.0.7/", false),
        ("https://[::1]:9000", false),
        ("https://[::1]", false),
        ("https://minio.example.com:9000", true),
        ("https://1.example.com", true),
    ] {
        let lines = format!("endpoint_url = \"{endpoint}\"\nforce_path_style");
        assert_eq!(parsed(&text(&format!("{lines} = false"))).is_ok(), taken, "{endpoint}");
        parsed(&text(&format!("{lines} = true"))).unwrap();
    }
    for url in ["s3://", "s3://ab", "s3://bank-lake//x", "s3://bank-lake/a b", "s3://bank-lake/../x"] {
        assert!(parsed(&format!("{MINIMAL}[lake]\nurl = \"{url}\"")).is_err(), "{url} was taken");
    }
}

#[test]
fn kafka_takes_brokers_and_names_of_its_own() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("password");
    std::fs::write(&file, "geheim\n").unwrap();
    let text = format!(
        "{MINIMAL}[log]\nkind = \"kafka\"\n[log.kafka]\nbrokers = [\"a:9092\", \"[::1]:9093\"]\npartitions = 6\n\
         [log.kafka.topic_config]\n\"min.insync.replicas\" = 2\nretention.ms = 86_400_000\n\
         [log.kafka.properties]\nsecurity.protocol = \"SASL_SSL\"\n\"sasl.username\" = \"${{PGPASSWORD}}\"\n\
         \"sasl.password_file\" = \"{}\"\n\"socket.keepalive.enable\" = true\n",
        file.display()
    );
    let config = parsed(&text).unwrap();
    let LogKind::Kafka(kafka) = &config.log.kind else { panic!("{:?}", config.log.kind) };
    assert_eq!((kafka.brokers.len(), kafka.partitions, kafka.replication_factor), (2, 6, None));
    assert_eq!((kafka.transactional_id.as_str(), kafka.create_topics), ("tidemark-shop", true));
    let settings: Vec<_> = kafka.topic_config.iter().map(|(k, v)| format!("{k}={v}")).collect();
    assert_eq!(settings, ["min.insync.replicas=2", "retention.ms=86400000"]);
    let properties: Vec<_> = kafka.properties.iter().map(|(k, v)| format!("{k}={}", v.expose())).collect();
    assert_eq!(
        properties,
        [
            "sasl.password=geheim",
            "sasl.username=hunter2",
            "security.protocol=SASL_SSL",
            "socket.keepalive.enable=true"
        ]
    );
    let printed = format!("{config:?}");
    assert!(!printed.contains("geheim") && !printed.contains("hunter2"), "{printed}");
}

#[test]
fn what_kafka_cannot_do_is_told_together() {
    let message = refused(&format!(
        "{MINIMAL}[log]\nkind = \"kafka\"\n[log.kafka]\npartitons = 3\n[log.kafka.properties]\nacks = \"1\"\n\
         enable.idempotence = false\n\"sasl.password_file\" = \"/nowhere/p\"\n\"sasl.password\" = [\"geheim\"]\n"
    ));
    for part in [
        "[log.kafka] brokers: missing; expected addresses of brokers",
        "line 6: [log.kafka] partitons: unknown key; did you mean `partitions`?",
        "line 8: [log.kafka.properties] acks: cannot be set: exactness hangs on it",
        "line 9: [log.kafka.properties] enable.idempotence: cannot be set",
        "line 10: [log.kafka.properties] sasl.password_file: /nowhere/p cannot be read",
        "line 11: [log.kafka.properties] sasl.password: found an array; expected a string",
    ] {
        assert!(message.contains(part), "{part} is missing: {message}");
    }
    assert!(!message.contains("geheim"), "{message}");
    // Without brokers the section is of no use, and does no harm while it is not asked for.
    parsed(&format!("{MINIMAL}[log.kafka]\npartitions = 3")).unwrap();
    let message = refused(&format!("{MINIMAL}[log]\nkind = \"kafka\"\n[log.kafka]\nbrokers = [\"a\"]"));
    assert!(message.contains("[log.kafka] brokers: found \"a\"; expected host:port"), "{message}");
}

#[test]
fn what_is_not_toml_is_told_with_its_line_and_without_its_text() {
    let text =
        "[source]\nurl = \"postgresql://me:geheim@db/shop\npassword = hunter2\n[cut]\nat = \"00:00\" x\n";
    let message = refused(text);
    assert!(message.contains("line 2: not valid TOML"), "{message}");
    assert!(message.contains("line 5: not valid TOML"), "{message}");
    assert!(!message.contains("geheim") && !message.contains("hunter2"), "{message}");
    assert!(refused("[source]\nurl = \"a\"\nurl = \"b\"").contains("line 3: not valid TOML: duplicate key"));
}

#[test]
fn a_key_in_the_place_of_a_section_is_told() {
    assert!(
        refused("source = \"x\"").contains("line 1: source: found a string; expected a section, [source]")
    );
    assert!(refused("table = 1").contains("line 1: table: found an integer; expected [[table]] sections"));
    assert!(refused("url = \"x\"").contains(
        "line 1: url: unknown key; did you mean `[envelope.registry] url` or `[lake] url` or `[notices.webhook] url` or `[source] url`?"
    ));
}

#[test]
fn a_missing_url_is_a_problem_of_its_own() {
    let message = refused("");
    assert_eq!(
        message,
        "connector.toml: [source] url: missing; expected a URL such as postgresql://tidemark@db.example.com:5432/shop"
    );
}

#[test]
fn a_missing_file_shows_the_smallest_one() {
    let errors = Config::load(Path::new("/nowhere/connector.toml"), &|_| None).unwrap_err();
    let error = crate::runtime::Error::from(errors);
    assert_eq!(error.class(), crate::runtime::Class::Usage);
    assert!(error.message().contains("/nowhere/connector.toml: there is no such file"));
    let mend = error.mend_text().unwrap();
    let example = &mend[mend.find("[source]").unwrap()..];
    parsed(&example.replace("\n    ", "\n")).unwrap();
}

#[test]
fn variables_and_secret_files_are_taken_and_never_printed() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("password");
    std::fs::write(&file, "  geheim$${x}\r\n").unwrap();
    let text = format!(
        "[source]\nurl = \"postgres://me@db/shop?sslpassword=hunter2\"\npassword_file = \"{}\"\n[cut]\ntime_zone = \"${{ZONE}}\"",
        file.display()
    );
    let config = parsed(&text).unwrap();
    assert_eq!(config.source.password.as_ref().unwrap().expose(), "  geheim$${x}");
    assert_eq!(config.cut.time_zone_name(), "Asia/Dubai");
    let config_of_url = parsed("[source]\nurl = \"postgres://me:${PGPASSWORD}@db/shop\"").unwrap();
    assert_eq!(config_of_url.source.url.expose(), "postgres://me:hunter2@db/shop");
    assert_eq!(config_of_url.source.url.to_string(), "postgres://me:***@db/shop");
    for printed in [format!("{config:?}{config_of_url:#?}"), config.source.url.to_string()] {
        assert!(!printed.contains("geheim") && !printed.contains("hunter2"), "{printed}");
    }
}

#[test]
fn secrets_are_not_quoted_when_they_are_wrong() {
    let both = refused("[source]\nurl = \"postgres://me:geheim@db/shop\"\npassword = \"hunter2\"");
    let number = refused("[source]\nurl = \"postgres://me@db/shop\"\npassword = 4711");
    let host = refused("[source]\nurl = \"postgres://me:geheim@/shop\"");
    assert!(both.contains("[source] password: given beside a password in url"), "{both}");
    assert!(number.contains("found an integer; expected a string; the value is not shown"), "{number}");
    assert!(host.contains("line 2: [source] url: found no host"), "{host}");
    for message in [both, number, host] {
        assert!(!["geheim", "hunter2", "4711"].iter().any(|s| message.contains(s)), "{message}");
    }
}

#[test]
fn a_secret_given_twice_or_a_file_that_is_not_there_is_told() {
    let message = refused("[source]\nurl_file = \"/nowhere/url\"\npassword = \"a\"\npassword_file = \"b\"");
    assert!(message.contains("line 2: [source] url_file: /nowhere/url cannot be read"), "{message}");
    assert!(message.contains("line 4: [source] password_file: given beside password"), "{message}");
    assert!(!message.contains("missing"), "{message}");
}

#[test]
fn a_name_is_made_of_any_database() {
    for (url, name, slot) in [
        ("postgres://h/Shop.EU", "Shop_EU", "tidemark_shop_eu"),
        ("postgres://h/_x", "db_x", "tidemark_db_x"),
        ("postgres://h/caf%C3%A9-1", "caf_-1", "tidemark_caf__1"),
        ("postgres://me@h", "me", "tidemark_me"),
        ("postgres:///?host=/run/pg&dbname=s", "s", "tidemark_s"),
        ("postgres://u@%2Frun%2Fpg/s", "s", "tidemark_s"),
        ("postgres://a:1,b:2/s?target_session_attrs=primary", "s", "tidemark_s"),
    ] {
        let config = parsed(&format!("[source]\nurl = \"{url}\"")).unwrap();
        assert_eq!((config.source.name.as_str(), config.source.slot.as_str()), (name, slot), "{url}");
    }
    let long = parsed(&format!("[source]\nurl = \"postgres://h/{}\"", "é".repeat(80))).unwrap();
    assert_eq!(long.source.slot.len(), 63);
}

#[test]
fn tables_are_taken_by_patterns() {
    let text = format!(
        "{MINIMAL}tables = [\"public.*\", \"sales.order_?\"]\nexclude = [\"public.tmp_*\"]\n\
         [[table]]\nmatch = \"public.tmp_keep\"\n[[table]]\nmatch = \"*.secret\"\nexclude = true\n"
    );
    let filter = parsed(&text).unwrap().source.tables;
    let takes = |name: &str| filter.takes(&name.parse().unwrap());
    assert!(
        takes("public.orders") && takes("sales.order_1") && takes("public.tmp_keep") && takes("public.a.b")
    );
    assert!(
        !takes("sales.order_10") && !takes("public.tmp_1") && !takes("public.secret") && !takes("other.t")
    );
    let all = parsed(MINIMAL).unwrap().source.tables;
    assert!(all.takes_all() && !filter.takes_all());
    assert!(!all.takes(&crate::change::TableName::new("pg_catalog", "pg_class")));
    assert!(!all.takes(&crate::change::TableName::new("information_schema", "tables")));
}

#[test]
fn what_is_kept_of_a_table_is_what_its_rule_says_and_else_what_the_lake_says() {
    let text = format!(
        "{MINIMAL}[lake.retention]\nkeep_days = 30\n[[table]]\nmatch = \"public.*\"\nkeep_days = 7\n\
         [[table]]\nmatch = \"public.audit\"\nkeep_days = 0\nkeep_month_ends = false\n"
    );
    let config = parsed(&text).unwrap();
    let kept = |table: &str| {
        let kept = config.source.tables.retention(&table.parse().unwrap(), config.lake.retention);
        (kept.keep_days, kept.keep_month_ends)
    };
    assert_eq!(kept("sales.orders"), (30, true));
    assert_eq!(kept("public.orders"), (7, true));
    assert_eq!(kept("public.audit"), (0, false));
    let all = parsed(MINIMAL).unwrap().lake.retention;
    assert_eq!((all.keep_days, all.keep_month_ends), (0, true));
    assert!(
        refused(&format!("{MINIMAL}[lake.retention]\nkeep_days = -1")).contains("[lake.retention] keep_days")
    );
}

#[test]
fn who_is_told_of_days_is_checked_and_no_secret_is_quoted() {
    let error = refused(&format!(
        "{MINIMAL}[notices.webhook]\nurl = \"ftp://geheim@h\"\n[notices.kafka]\ntopic = \"t\""
    ));
    assert!(error.contains("[notices.webhook] url") && !error.contains("geheim"), "{error}");
    assert!(error.contains("[notices.kafka] brokers: missing"), "{error}");
    let error = refused(&format!("{MINIMAL}[notices.webhook]\nbearer_token = \"geheim\""));
    assert!(error.contains("given without url") && !error.contains("geheim"), "{error}");
    let sns = "[notices.sns]\ntopic_arn = \"arn:aws:sqs:eu:1:q\"\nendpoint_url = \"http://h\"\naccess_key_id = \"geheim\"";
    let error = refused(&format!("{MINIMAL}{sns}"));
    for told in ["[notices.sns] topic_arn", "[notices.sns] endpoint_url", "given without secret_access_key"] {
        assert!(error.contains(told) && !error.contains("geheim"), "{error}");
    }
    // A log on Kafka lends its brokers.
    let kafka = format!(
        "{MINIMAL}[log]\nkind = \"kafka\"\n[log.kafka]\nbrokers = [\"k:9092\"]\n[notices.kafka]\ntopic = \"t\""
    );
    assert_eq!(parsed(&kafka).unwrap().notices.kafka.unwrap().brokers, ["k:9092"]);
}

#[test]
fn a_lake_url_prints_as_it_is_read() {
    let LakeUrl::Folder(path) =
        parsed(&format!("{MINIMAL}[lake]\nurl = \"file:///srv/my%20lake\"")).unwrap().lake.url
    else {
        panic!("no folder")
    };
    assert_eq!(path, Path::new("/srv/my lake"));
    assert_eq!(LakeUrl::Folder(path).to_string(), "file:///srv/my%20lake");
    assert!(refused(&format!("{MINIMAL}[lake]\nurl = \"file://relative/lake\"")).contains("[lake] url"));
}

#[test]
fn a_historic_tail_is_switched_on_by_its_weekday_for_the_tables_that_match() {
    let rule = "[[table]]\nmatch = \"public.big\"\nhistoric_tail_weekday = \"friday\"\n";
    let config = parsed(&format!("{MINIMAL}{rule}")).unwrap();
    let tail = |name: &str| config.source.tables.historic_tail(&TableName::new("public", name));
    let weekday = jiff::civil::Weekday::Friday;
    assert_eq!(tail("big"), Some(HistoricTailConfig { weekday, recent_rows: 10_000_000 }));
    assert_eq!(tail("small"), None);
    let error = refused(&format!(
        "{MINIMAL}[[table]]\nmatch = \"*.*\"\nhistoric_tail_weekday = \"Sunday\"\nhistoric_tail_recent_rows = 0"
    ));
    for told in ["[[table]] historic_tail_weekday: found \"Sunday\"; expected \"monday\"", "from 1 to"] {
        assert!(error.contains(told), "{error}");
    }
    let error = refused(&format!("{MINIMAL}[[table]]\nmatch = \"*.*\"\nhistoric_tail_recent_rows = 5"));
    assert!(
        error.contains("[[table]] historic_tail_recent_rows: given without historic_tail_weekday"),
        "{error}"
    );
}

/// The file in the repository, with its defaults uncommented: `# key = value` becomes `key = value`.
fn with_defaults_written() -> String {
    let text = include_str!("../../connector.toml");
    let key = |line: &&str| {
        let rest = line.strip_prefix("# ").unwrap_or(line);
        let word = rest.split(" =").next().unwrap_or_default();
        rest.contains(" = ") && word.chars().all(|c| c.is_ascii_lowercase() || c == '_')
            || rest.starts_with('[')
    };
    text.lines().filter(key).map(|line| line.trim_start_matches("# ").to_owned() + "\n").collect()
}

#[test]
fn the_example_file_works_as_it_is() {
    let example = parsed(include_str!("../../connector.toml")).unwrap();
    assert_eq!(example, parsed(MINIMAL).unwrap());
}

#[test]
fn the_example_file_shows_every_key_with_its_true_default() {
    let written = with_defaults_written();
    let keys = ["access_key_id", "secret_access_key", "session_token", "bearer_token", "hmac_key"];
    let secret = |line: &&str| ["url_file", "password"].iter().chain(&keys).any(|key| line.starts_with(key));
    let text: String = written.lines().filter(|line| !secret(line)).map(|l| l.to_owned() + "\n").collect();
    let mut config = parsed(&text).unwrap();
    let defaults = parsed(MINIMAL).unwrap();
    let LakeUrl::Folder(lake) = &config.lake.url else { panic!("{}", config.lake.url) };
    assert!(lake.is_absolute());
    config.lake.url = defaults.lake.url.clone();
    // As many as the machine has.
    config.lake.merge_threads = defaults.lake.merge_threads;
    // What has no default but the environment's, or the bucket's.
    let none = defaults.lake.s3.clone();
    let s3 = &mut config.lake.s3;
    assert!(
        s3.region.is_some() && s3.endpoint_url.is_some() && s3.ca_file.is_some() && s3.encryption.is_some()
    );
    (s3.region, s3.endpoint_url, s3.ca_file, s3.encryption) =
        (none.region, none.endpoint_url, none.ca_file, none.encryption);
    s3.force_path_style = None;
    config.source.tables.rules.clear();
    // Nobody is told unless an endpoint is named.
    let told = std::mem::take(&mut config.notices);
    assert!(told.webhook.is_some_and(|hook| hook.timeout_ms == 10_000 && hook.ca_file.is_some()));
    assert!(told.kafka.is_some_and(|kafka| kafka.timeout_ms == 10_000 && kafka.topic == "lake-notices"));
    assert!(told.sns.is_some_and(|sns| sns.timeout_ms == 10_000 && sns.ca_file.is_some()));
    assert_eq!(config, defaults);

    let (_, keys) = sections::read(MINIMAL, &|_| None).unwrap();
    let (_, keys_of_table) = sections::read(&text, &|_| None).unwrap();
    let shown = written.parse::<toml::Table>().unwrap();
    for (section, keys) in keys.iter().chain(keys_of_table.iter()) {
        let table = section.split('.').try_fold(&shown, |table, part| match table.get(part)? {
            toml::Value::Array(list) => list[0].as_table(),
            value => value.as_table(),
        });
        for key in keys {
            assert!(table.is_some_and(|table| table.contains_key(*key)), "[{section}] {key} is not shown");
        }
    }
}

fn with_envelope(text: &str) -> Result<Config, ConfigErrors> {
    parsed(&format!("{MINIMAL}{text}"))
}

#[test]
fn avro_needs_a_registry_and_everything_about_it_is_told_at_once() {
    let error = with_envelope("[envelope]\nformat = \"avro\"").expect_err("it was taken").to_string();
    assert_eq!(
        error,
        "connector.toml: [envelope.registry] url: missing; format = \"avro\" needs a schema registry, such as http://registry:8081"
    );
    let text = r#"[envelope]
format = "avro"
schemas_enable = true
[envelope.registry]
url = "http://me:geheim@registry:8081"
password = "geheim"
timeout_ms = 1
subject_naming = "topic"
auto_registr = true
"#;
    let error = with_envelope(text).expect_err("it was taken").to_string();
    for part in [
        "line 5: [envelope] schemas_enable: found true with format = \"avro\"",
        "line 7: [envelope.registry] url: found what is no address of a registry",
        "[envelope.registry] user: missing; expected one beside the password",
        "line 9: [envelope.registry] timeout_ms: found 1; expected a whole number of milliseconds from 100",
        "line 10: [envelope.registry] subject_naming: found \"topic\"; expected \"topic_name\", \"record_name\" or \"topic_record_name\"",
        "line 11: [envelope.registry] auto_registr: unknown key; did you mean `auto_register`?",
    ] {
        assert!(error.contains(part), "{part}\n{error}");
    }
    assert!(error.contains("6 problems") && !error.contains("geheim"), "{error}");
}

#[test]
fn a_registry_has_defaults_and_its_password_is_never_printed() {
    let text = "[envelope]\nformat = \"avro\"\n[envelope.registry]\nurl = \"http://a:8081, https://b.example.com/api\"\nuser = \"me\"\npassword = \"${PGPASSWORD}\"";
    let config = with_envelope(text).unwrap();
    let EnvelopeFormat::Avro(registry) = &config.envelope.format else { panic!("{:?}", config.envelope) };
    assert_eq!(registry.urls, ["http://a:8081", "https://b.example.com/api"]);
    assert_eq!((registry.timeout_ms, registry.auto_register), (10_000, true));
    assert_eq!(registry.subject_naming, SubjectNaming::TopicName);
    assert_eq!(registry.password.as_ref().map(Secret::expose), Some("hunter2"));
    assert!(!format!("{config:?}").contains("hunter2"));
    for bad in [
        "registry:8081",
        "http://",
        "http://:80",
        "http://a b",
        "http://a:port",
        "http://a/?x=1",
        "",
        "http://a,",
    ] {
        let text = format!("[envelope.registry]\nurl = \"{bad}\"");
        with_envelope(&text).expect_err(bad);
    }
    let json =
        with_envelope("[envelope]\nschemas_enable = true\nprovide_transaction_metadata = true").unwrap();
    assert_eq!(json.envelope.format, EnvelopeFormat::Json { schemas_enable: true });
    assert!(json.envelope.provide_transaction_metadata && !config.envelope.provide_transaction_metadata);
}
