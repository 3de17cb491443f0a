//! The client of HTTP for endpoints which an operator names.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use ureq::Agent;
use ureq::tls::{Certificate, RootCerts, TlsConfig};

use super::{Error, Result};

const CONNECT_PATIENCE: Duration = Duration::from_secs(5);

/// A client whose requests take no longer than `timeout`, follow no redirect, and end well with any status. It trusts the
/// authorities of `ca_file`, or the system's; `section` names the configuration in errors.
///
/// # Errors
/// `Operator`: `ca_file` cannot be used.
pub fn agent(section: &str, ca_file: Option<&Path>, timeout: Duration) -> Result<Agent> {
    let tls = TlsConfig::builder()
        .root_certs(RootCerts::Specific(Arc::new(roots(section, ca_file)?)))
        .unversioned_rustls_crypto_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .build();
    let agent = Agent::config_builder()
        .http_status_as_error(false)
        .max_redirects(0)
        .max_redirects_will_error(false)
        .timeout_connect(Some(CONNECT_PATIENCE.min(timeout)))
        .timeout_global(Some(timeout))
        .tls_config(tls)
        // It stands in the same network: never by way of a proxy.
        .proxy(None)
        .build();
    Ok(agent.into())
}

fn roots(section: &str, ca_file: Option<&Path>) -> Result<Vec<Certificate<'static>>> {
    let own = |certificate: &CertificateDer<'_>| Certificate::from_der(certificate).to_owned();
    let Some(path) = ca_file else {
        return Ok(rustls_native_certs::load_native_certs().certs.iter().map(own).collect());
    };
    let unreadable = |error: &dyn std::fmt::Display| {
        Error::operator(format!("{section} ca_file: {}: {error}", path.display()))
            .mend("Expected a file with certificates in PEM form.")
    };
    let certificates: Result<Vec<_>, _> =
        CertificateDer::pem_file_iter(path).map_err(|error| unreadable(&error))?.collect();
    let certificates = certificates.map_err(|error| unreadable(&error))?;
    if certificates.is_empty() {
        return Err(unreadable(&"it holds no certificate"));
    }
    Ok(certificates.iter().map(own).collect())
}
