//! TLS with libpq's `sslmode` meanings, on rustls.
//!
//! | mode | encrypted | chain checked | host name checked |
//! |---|---|---|---|
//! | `allow`, `prefer` | if it comes to it | if there is a root certificate | no |
//! | `require` | yes | if there is a root certificate | no |
//! | `verify-ca` | yes | yes | no |
//! | `verify-full` | yes | yes | yes |
//!
//! Also where nothing is checked, the server must prove in the handshake that it holds the certificate's key,
//! so that channel binding can rely on the certificate. As with OpenSSL, a certificate which is itself in the
//! root file is trusted, and the common name counts where a certificate has no alternative names: both are
//! what `openssl req -x509`, as the Postgres manual shows it, makes.
//!
//! Source: `src/interfaces/libpq/fe-secure-openssl.c` (`initialize_SSL`, `pgtls_get_peer_certificate_hash`),
//! `fe-secure-common.c` (host name matching), RFC 5929 section 4.1.

use std::fmt;
use std::fs;
use std::net::IpAddr;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{verify_server_cert_signed_by_trust_anchor, verify_server_name};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use sha2::{Digest, Sha256, Sha384, Sha512};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use x509_parser::certificate::X509Certificate;
use x509_parser::prelude::FromDer;
use x509_parser::signature_algorithm::SignatureAlgorithm;

use super::hosts::{Endpoint, Host};
use super::options::{ConnectOptions, RootCertificates, SslMode};
use crate::runtime::{Error, Result};

/// A TLS connection, with what authentication may bind itself to.
pub(super) struct Secured {
    pub(super) stream: TlsStream<TcpStream>,
    /// `tls-server-end-point` data; `None` where RFC 5929 defines none for the certificate.
    pub(super) end_point: Option<Vec<u8>>,
}

/// Does the TLS handshake on a connection whose server has agreed to it.
pub(super) async fn secure(
    tcp: TcpStream,
    options: &ConnectOptions,
    endpoint: &Endpoint,
    config: Arc<ClientConfig>,
) -> Result<Secured> {
    let name = server_name(options, endpoint, &tcp)?;
    let stream = TlsConnector::from(config)
        .connect(name, tcp)
        .await
        .map_err(|error| handshake_error(endpoint, error))?;
    let certificate = stream.get_ref().1.peer_certificates().and_then(<[_]>::first);
    let end_point = certificate.and_then(|certificate| end_point_hash(certificate));
    Ok(Secured { stream, end_point })
}

/// The TLS settings for these options; reads the certificate files.
pub(super) fn client_config(options: &ConnectOptions) -> Result<Arc<ClientConfig>> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let check = match (roots(options)?, options.ssl_mode) {
        (Some(roots), SslMode::VerifyFull) => Check::Name(roots),
        (Some(roots), _) => Check::Chain(roots),
        (None, SslMode::VerifyCa | SslMode::VerifyFull) => {
            return Err(Error::operator(
                "sslmode verifies the server's certificate, but there is no root certificate",
            )
            .mend("Set sslrootcert to a file, or to \"system\", or put one at ~/.postgresql/root.crt."));
        }
        (None, _) => Check::Nothing,
    };
    let verifier = Arc::new(Verifier { check, provider: provider.clone() });
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| Error::operator("TLS cannot be set up").cause(error))?
        .dangerous()
        .with_custom_certificate_verifier(verifier);
    let config = match client_identity(options)? {
        Some((chain, key)) => builder.with_client_auth_cert(chain, key).map_err(|error| {
            Error::operator("the client certificate (sslcert, sslkey) cannot be used").cause(error)
        })?,
        None => builder.with_no_client_auth(),
    };
    Ok(Arc::new(config))
}

fn roots(options: &ConnectOptions) -> Result<Option<Roots>> {
    let path = match &options.root_certificates {
        Some(RootCertificates::System) => {
            let found = rustls_native_certs::load_native_certs();
            if found.certs.is_empty() {
                return Err(Error::operator("sslrootcert=system, but this system has no root certificates")
                    .mend("Install the package ca-certificates, or name a file."));
            }
            return Ok(Some(Roots::new(found.certs)));
        }
        Some(RootCertificates::File(path)) => path,
        Some(RootCertificates::DefaultFile(path)) if path.exists() => path,
        _ => return Ok(None),
    };
    let certificates = read_certificates(path, "sslrootcert")?;
    let roots = Roots::new(certificates);
    if roots.store.is_empty() {
        return Err(Error::operator(format!("the root certificates in {} cannot be used", path.display())));
    }
    Ok(Some(roots))
}

fn read_certificates(path: &Path, setting: &str) -> Result<Vec<CertificateDer<'static>>> {
    let bad =
        |error| Error::operator(format!("the {setting} file {} cannot be read", path.display())).cause(error);
    let certificates: Vec<_> =
        CertificateDer::pem_file_iter(path).map_err(bad)?.collect::<Result<_, _>>().map_err(bad)?;
    if certificates.is_empty() {
        return Err(Error::operator(format!(
            "the {setting} file {} holds no PEM certificate",
            path.display()
        )));
    }
    Ok(certificates)
}

type Identity = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

fn client_identity(options: &ConnectOptions) -> Result<Option<Identity>> {
    match (&options.client_certificate, &options.client_key) {
        (Some(certificate), Some(key)) => {
            Ok(Some((read_certificates(certificate, "sslcert")?, read_key(key)?)))
        }
        (Some(certificate), None) => Err(Error::usage(format!(
            "there is a client certificate ({}) without a key",
            certificate.display()
        ))
        .mend("Set sslkey to the file of its private key.")),
        // A key without a certificate has no use, and libpq ignores it too.
        (None, _) => Ok(None),
    }
}

fn read_key(path: &Path) -> Result<PrivateKeyDer<'static>> {
    let name = path.display();
    let metadata = fs::metadata(path)
        .map_err(|error| Error::operator(format!("the sslkey file {name} cannot be read")).cause(error))?;
    // libpq's rule: root may own a key that a group reads; anybody else keeps it to themselves.
    let forbidden = if metadata.uid() == 0 { 0o027 } else { 0o077 };
    if metadata.mode() & forbidden != 0 {
        return Err(Error::operator(format!("the sslkey file {name} may be read by others"))
            .mend("Let only its owner read it: chmod 0600."));
    }
    PrivateKeyDer::from_pem_file(path).map_err(|error| {
        Error::operator(format!("the sslkey file {name} holds no private key that can be used"))
            .cause(error)
            .mend("Expected PEM: PKCS#8, PKCS#1 or SEC1, without a passphrase.")
    })
}

/// The name to verify and to send. Where nothing is verified, any well-formed name does.
fn server_name(
    options: &ConnectOptions,
    endpoint: &Endpoint,
    tcp: &TcpStream,
) -> Result<ServerName<'static>> {
    let Host::Tcp(host) = &endpoint.host else {
        return Err(Error::usage("TLS is not used on Unix sockets"));
    };
    if let Ok(name) = ServerName::try_from(host.clone()) {
        return Ok(name);
    }
    if options.ssl_mode == SslMode::VerifyFull {
        return Err(Error::usage(format!("{host:?} is not a host name that a certificate can name")));
    }
    let peer = tcp.peer_addr().map_err(|error| super::error::lost(&endpoint.address(), error))?;
    Ok(ServerName::from(peer.ip()))
}

fn handshake_error(endpoint: &Endpoint, error: std::io::Error) -> Error {
    let address = endpoint.address();
    let tls = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    let mend = match tls {
        Some(rustls::Error::InvalidCertificate(bad)) => match bad {
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
                "The server's certificate is for another host name: connect by a name it holds, or use \
                 sslmode=verify-ca."
            }
            CertificateError::UnknownIssuer => {
                "The server's certificate was not issued by a root in sslrootcert."
            }
            CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
                "The server's certificate has expired: renew it."
            }
            _ => "Check the server's certificate and sslrootcert.",
        },
        Some(rustls::Error::AlertReceived(_)) => {
            "The server ended the handshake; if it asks for a client certificate, set sslcert and sslkey."
        }
        // Anything else is the network's fault.
        _ => return super::error::lost(&address, error),
    };
    Error::operator(format!("TLS with {address} failed")).cause(error).mend(mend)
}

struct Roots {
    store: RootCertStore,
    certificates: Vec<CertificateDer<'static>>,
}

impl Roots {
    fn new(certificates: Vec<CertificateDer<'static>>) -> Self {
        let mut store = RootCertStore::empty();
        store.add_parsable_certificates(certificates.iter().cloned());
        Self { store, certificates }
    }
}

enum Check {
    Nothing,
    Chain(Roots),
    Name(Roots),
}

struct Verifier {
    check: Check,
    provider: Arc<CryptoProvider>,
}

impl fmt::Debug for Verifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Verifier")
    }
}

impl Verifier {
    fn check_chain(
        &self,
        roots: &Roots,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<(), rustls::Error> {
        if roots.certificates.iter().any(|root| root.as_ref() == certificate.as_ref()) {
            return check_period(certificate, now);
        }
        let parsed = ParsedCertificate::try_from(certificate)?;
        let algorithms = self.provider.signature_verification_algorithms.all;
        verify_server_cert_signed_by_trust_anchor(&parsed, &roots.store, intermediates, now, algorithms)
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        match &self.check {
            Check::Nothing => {}
            Check::Chain(roots) => self.check_chain(roots, end_entity, intermediates, now)?,
            Check::Name(roots) => {
                self.check_chain(roots, end_entity, intermediates, now)?;
                check_name(end_entity, server_name)?;
            }
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(
            message,
            certificate,
            signature,
            &self.provider.signature_verification_algorithms,
        )
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(
            message,
            certificate,
            signature,
            &self.provider.signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

fn parse(certificate: &[u8]) -> Result<X509Certificate<'_>, rustls::Error> {
    X509Certificate::from_der(certificate)
        .map(|(_, parsed)| parsed)
        .map_err(|_| rustls::Error::InvalidCertificate(CertificateError::BadEncoding))
}

fn check_period(certificate: &[u8], now: UnixTime) -> Result<(), rustls::Error> {
    let parsed = parse(certificate)?;
    let now = now.as_secs() as i64;
    if now < parsed.validity().not_before.timestamp() {
        return Err(rustls::Error::InvalidCertificate(CertificateError::NotValidYet));
    }
    if now > parsed.validity().not_after.timestamp() {
        return Err(rustls::Error::InvalidCertificate(CertificateError::Expired));
    }
    Ok(())
}

fn check_name(certificate: &CertificateDer<'_>, name: &ServerName<'_>) -> Result<(), rustls::Error> {
    let by_alternative_name = verify_server_name(&ParsedCertificate::try_from(certificate)?, name);
    if by_alternative_name.is_ok() {
        return Ok(());
    }
    let parsed = parse(certificate)?;
    let has_alternative_names = parsed.subject_alternative_name().is_ok_and(|names| names.is_some());
    let matches = !has_alternative_names
        && parsed
            .subject()
            .iter_common_name()
            .any(|common| common.as_str().is_ok_and(|text| common_name_is(text, name)));
    if matches { Ok(()) } else { by_alternative_name }
}

/// libpq's rule for the common name: equal, or one `*` for the whole leftmost label.
fn common_name_is(common: &str, name: &ServerName<'_>) -> bool {
    match name {
        ServerName::DnsName(host) => {
            let host = host.as_ref();
            let by_wildcard = common.strip_prefix("*.").is_some_and(|domain| {
                host.split_once('.')
                    .is_some_and(|(label, rest)| !label.is_empty() && rest.eq_ignore_ascii_case(domain))
            });
            by_wildcard || common.eq_ignore_ascii_case(host)
        }
        ServerName::IpAddress(address) => common.parse() == Ok(IpAddr::from(*address)),
        _ => false,
    }
}

/// `tls-server-end-point`: the certificate's hash by the algorithm of its own signature, MD5 and SHA-1 raised
/// to SHA-256. `None` for algorithms without a hash of their own (Ed25519), as in the server.
fn end_point_hash(certificate: &[u8]) -> Option<Vec<u8>> {
    let parsed = parse(certificate).ok()?;
    let algorithm = match SignatureAlgorithm::try_from(&parsed.signature_algorithm).ok()? {
        SignatureAlgorithm::RSASSA_PSS(parameters) => parameters.hash_algorithm_oid().to_id_string(),
        _ => parsed.signature_algorithm.algorithm.to_id_string(),
    };
    Some(match algorithm.as_str() {
        // {md5,sha1,sha256}WithRSAEncryption, ecdsa-with-{SHA1,SHA256}, dsa-with-{sha1,sha256}; MD5, SHA-1, SHA-256
        "1.2.840.113549.1.1.4"
        | "1.2.840.113549.1.1.5"
        | "1.2.840.113549.1.1.11"
        | "1.2.840.10045.4.1"
        | "1.2.840.10045.4.3.2"
        | "1.2.840.10040.4.3"
        | "2.16.840.1.101.3.4.3.2"
        | "1.2.840.113549.2.5"
        | "1.3.14.3.2.26"
        | "2.16.840.1.101.3.4.2.1" => Sha256::digest(certificate).to_vec(),
        // sha384WithRSAEncryption, ecdsa-with-SHA384; SHA-384
        "1.2.840.113549.1.1.12" | "1.2.840.10045.4.3.3" | "2.16.840.1.101.3.4.2.2" => {
            Sha384::digest(certificate).to_vec()
        }
        // sha512WithRSAEncryption, ecdsa-with-SHA512; SHA-512
        "1.2.840.113549.1.1.13" | "1.2.840.10045.4.3.4" | "2.16.840.1.101.3.4.2.3" => {
            Sha512::digest(certificate).to_vec()
        }
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_common_name_matches_whole_or_by_its_leftmost_label() {
        let is = |common: &str, host: &str| {
            common_name_is(common, &ServerName::try_from(host.to_owned()).unwrap())
        };
        assert!(is("DB.example", "db.example"));
        assert!(is("*.example", "db.example"));
        assert!(is("10.0.0.1", "10.0.0.1"));
        assert!(!is("*.example", "a.db.example"));
        assert!(!is("*.example", "example"));
        assert!(!is("db.example", "db.example.evil"));
    }
}
