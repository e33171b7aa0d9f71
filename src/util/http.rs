//! The HTTP client on which those of ClickHouse and of the trace collector are based, with a
//! connect timeout and custom certificate authorities.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use hyper::Uri;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};

/// Shorter than ClickHouse's `keep_alive_timeout`, which was 3 s by default in its older versions.
const POOL_IDLE_TIMEOUT: Duration = Duration::from_secs(2);
const TCP_KEEPALIVE: Duration = Duration::from_secs(60);

#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error("failed to read PEM certificates from clickhouse.ca_file {path}: {problem}")]
    CaFile { path: PathBuf, problem: String },
    #[error("failed to set up TLS: {0}")]
    Rustls(#[from] rustls::Error),
}

/// Opens the connections of a client.
pub(crate) type Connector = HttpsConnector<HttpConnector>;

/// Creates a client that trusts the system's certificate authorities and those of the file.
pub(crate) fn client<B>(
    connect_timeout: Duration,
    ca_file: Option<&Path>,
) -> Result<Client<Connector, B>, TlsError>
where
    B: hyper::body::Body + Send,
    B::Data: Send,
{
    Ok(client_with(connector(connect_timeout, ca_file, None)?))
}

/// Creates a client without connections. It shares none with other clients of the same connector.
pub(crate) fn client_with<B>(connector: Connector) -> Client<Connector, B>
where
    B: hyper::body::Body + Send,
    B::Data: Send,
{
    Client::builder(TokioExecutor::new())
        .pool_idle_timeout(POOL_IDLE_TIMEOUT)
        .build(connector)
}

/// Creates a connector that trusts the system's certificate authorities and those of the file. With
/// a server name, certificates must have that name instead of the host of the URL.
pub(crate) fn connector(
    connect_timeout: Duration,
    ca_file: Option<&Path>,
    server_name: Option<&str>,
) -> Result<Connector, TlsError> {
    let mut tcp = HttpConnector::new();
    tcp.enforce_http(false);
    tcp.set_nodelay(true);
    tcp.set_keepalive(Some(TCP_KEEPALIVE));
    tcp.set_connect_timeout(Some(connect_timeout));
    let tls = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots(ca_file)?)
        .with_no_client_auth();
    let mut connector = HttpsConnectorBuilder::new()
        .with_tls_config(tls)
        .https_or_http();
    if let Some(name) = server_name {
        // An IPv6 address is in brackets in a URL, but not in a certificate.
        let name = name.trim_matches(['[', ']']).to_owned();
        let resolver = move |_: &Uri| ServerName::try_from(name.clone());
        connector = connector.with_server_name_resolver(resolver);
    }
    Ok(connector.enable_http1().wrap_connector(tcp))
}

fn roots(ca_file: Option<&Path>) -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    // A system without authorities is not an error: the file may suffice, or plain HTTP be used.
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if let Some(path) = ca_file {
        let problem = |problem: String| TlsError::CaFile {
            path: path.to_owned(),
            problem,
        };
        let certificates = CertificateDer::pem_file_iter(path)
            .and_then(Iterator::collect::<Result<Vec<_>, _>>)
            .map_err(|error| problem(error.to_string()))?;
        if certificates.is_empty() {
            return Err(problem("the file contains no certificates".to_owned()));
        }
        for certificate in certificates {
            roots
                .add(certificate)
                .map_err(|error| problem(error.to_string()))?;
        }
    }
    Ok(roots)
}
