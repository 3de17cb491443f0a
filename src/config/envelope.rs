//! `[envelope]` and `[envelope.registry]`.

use super::document::{Document, Section};
use super::{DecimalHandling, EnvelopeConfig, EnvelopeFormat, RegistryConfig, SubjectNaming, check, url};

pub(super) fn read(document: &Document<'_>) -> EnvelopeConfig {
    let section = document.section("envelope");
    let formats = [("json", false), ("avro", true)];
    let avro = section.text("format", |text| check::word(text, &formats, &[])).unwrap_or(false);
    let decimals = [("precise", DecimalHandling::Precise), ("string", DecimalHandling::String)];
    let decimal_handling = section.text("decimal_handling", |text| check::word(text, &decimals, &["double"]));
    let schemas_enable = section.boolean("schemas_enable");
    let provide_transaction_metadata = section.boolean("provide_transaction_metadata");
    if avro && schemas_enable == Some(true) {
        section.note(
            "schemas_enable",
            "found true with format = \"avro\", whose schemas are in the registry; expected it with \"json\" only".into(),
        );
    }
    let registry = registry(&document.section("envelope.registry"), avro);
    EnvelopeConfig {
        format: match registry {
            Some(registry) if avro => EnvelopeFormat::Avro(registry),
            _ => EnvelopeFormat::Json { schemas_enable: schemas_enable.unwrap_or(false) },
        },
        provide_transaction_metadata: provide_transaction_metadata.unwrap_or(false),
        decimal_handling: decimal_handling.unwrap_or(DecimalHandling::Precise),
    }
}

/// Checked, whether it is needed or not; `None` only with a problem noted or where it is not needed.
fn registry(section: &Section<'_, '_>, needed: bool) -> Option<RegistryConfig> {
    let given = section.secret("url", "url_file");
    if needed && given.is_none() && !section.has("url") && !section.has("url_file") {
        section.note(
            "url",
            "missing; format = \"avro\" needs a schema registry, such as http://registry:8081".into(),
        );
    }
    let parsed = given.map(|urls| urls.expose().split(',').map(|one| url::registry(one.trim())).collect());
    let urls: Option<Vec<String>> =
        parsed.and_then(|parsed: Result<_, String>| parsed.map_err(|text| section.note("url", text)).ok());
    let user = section.text("user", user);
    let password = section.secret("password", "password_file");
    if password.is_some() && user.is_none() && !section.has("user") {
        section.note("user", "missing; expected one beside the password".into());
    }
    let words = [
        ("topic_name", SubjectNaming::TopicName),
        ("record_name", SubjectNaming::RecordName),
        ("topic_record_name", SubjectNaming::TopicRecordName),
    ];
    let subject_naming = section.text("subject_naming", |text| check::word(text, &words, &[]));
    let (ca_file, auto_register) = (section.text("ca_file", check::path), section.boolean("auto_register"));
    let timeout_ms = section.integer("timeout_ms", "milliseconds", 100, 600_000, 10_000);
    Some(RegistryConfig {
        urls: urls?,
        user,
        password,
        ca_file,
        timeout_ms,
        auto_register: auto_register.unwrap_or(true),
        subject_naming: subject_naming.unwrap_or(SubjectNaming::TopicName),
    })
}

fn user(text: &str) -> Result<String, String> {
    if text.is_empty() || text.contains([':', '\r', '\n']) {
        return Err("a name without a colon".to_owned());
    }
    Ok(text.to_owned())
}
