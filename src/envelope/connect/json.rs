//! A schema as Connect's `JsonConverter` writes it.

use serde_json::{Map, Value, json};

use super::{Kind, Schema};

impl Schema {
    /// What precedes a payload in JSON with schemas; a closing brace follows it.
    pub(in crate::envelope) fn before_payload(&self) -> Vec<u8> {
        format!("{{\"schema\":{},\"payload\":", self.to_json()).into_bytes()
    }

    /// The JSON of the schema.
    pub(in crate::envelope) fn to_json(&self) -> Value {
        let mut out = Map::new();
        out.insert("type".into(), self.kind.word().into());
        match &self.kind {
            Kind::Struct(fields) => {
                let field = |field: &super::Field| {
                    let mut json = field.schema.to_json();
                    json["field"] = field.name.as_str().into();
                    json
                };
                out.insert("fields".into(), fields.iter().map(field).collect());
            }
            Kind::Array(items) => drop(out.insert("items".into(), items.to_json())),
            _ => {}
        }
        out.insert("optional".into(), self.optional.into());
        let mut put = |key: &str, value: Option<Value>| value.map(|value| out.insert(key.into(), value));
        put("name", self.name.as_deref().map(Into::into));
        put("version", self.version.map(Into::into));
        put("doc", self.doc.map(Into::into));
        if !self.parameters.is_empty() {
            let parameters = self.parameters.iter().map(|(name, value)| ((*name).to_owned(), json!(value)));
            put("parameters", Some(Value::Object(parameters.collect())));
        }
        put("default", self.default.map(Into::into));
        Value::Object(out)
    }
}

impl Kind {
    const fn word(&self) -> &'static str {
        match self {
            Self::Boolean => "boolean",
            Self::Int16 => "int16",
            Self::Int32 => "int32",
            Self::Int64 => "int64",
            Self::Float32 => "float",
            Self::Float64 => "double",
            Self::String => "string",
            Self::Bytes => "bytes",
            Self::Array(_) => "array",
            Self::Struct(_) => "struct",
        }
    }
}
