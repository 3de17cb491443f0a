//! What the environment says of AWS.
//!
//! `object_store` would take far more from it than keys (`AWS_SKIP_SIGNATURE`, `AWS_BUCKET`, how objects are copied), empty
//! values among it. What is not named here has no say.

use object_store::aws::AmazonS3Builder;

/// Where keys come from, by the names of AWS's own tools. Regions and the addresses of services are for each service to say.
const CHAIN: [&str; 12] = [
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_ROLE_ARN",
    "AWS_ROLE_SESSION_NAME",
    "AWS_ENDPOINT_URL_STS",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
    "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE",
    "AWS_METADATA_ENDPOINT",
    "AWS_IMDSV1_FALLBACK",
];

/// A client whose keys come from the environment, a web identity, the container or the instance.
pub fn chain() -> AmazonS3Builder {
    CHAIN.iter().fold(AmazonS3Builder::new(), |builder, name| {
        let key = name.to_ascii_lowercase().parse();
        match (key, variable(&[name])) {
            (Ok(key), Some((_, value))) => builder.with_config(key, value),
            _ => builder,
        }
    })
}

/// The first of these variables that is there and not empty, and its name.
pub fn variable<'a>(names: &[&'a str]) -> Option<(&'a str, String)> {
    names.iter().find_map(|name| Some((*name, std::env::var(name).ok().filter(|value| !value.is_empty())?)))
}

#[cfg(test)]
mod tests {
    use object_store::aws::AmazonS3ConfigKey;

    use super::*;

    #[test]
    fn every_name_of_the_chain_is_one_that_the_client_knows() {
        for name in CHAIN {
            assert!(name.to_ascii_lowercase().parse::<AmazonS3ConfigKey>().is_ok(), "{name}");
        }
    }
}
