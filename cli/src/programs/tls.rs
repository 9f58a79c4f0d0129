//! The certificate that API and pages are served with.

use std::{path::Path, sync::Arc};

use rustls::{
    ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
};
use tokio_rustls::TlsAcceptor;

use crate::client::Failure;

/// A certificate with its chain, and its key.
pub struct Identity(ServerConfig);

impl Identity {
    /// From two PEM files.
    pub fn read(certificate: &Path, key: &Path) -> Result<Self, String> {
        let shown = certificate.display();
        let chain = CertificateDer::pem_file_iter(certificate).and_then(Iterator::collect::<Result<Vec<_>, _>>);
        let chain = chain.map_err(|error| format!("tls-certificate: {shown} holds no certificates: {error}"))?;
        if chain.is_empty() {
            return Err(format!("tls-certificate: {shown} holds no certificate (PEM)"));
        }
        // Of a key nothing is repeated.
        let key = PrivateKeyDer::from_pem_file(key)
            .map_err(|_| format!("tls-key: {} can't be read, or holds no key (PEM)", key.display()))?;
        let server = ServerConfig::builder().with_no_client_auth().with_single_cert(chain, key);
        server.map(Self).map_err(|error| format!("tls-certificate and tls-key don't fit: {error}"))
    }
}

/// Takes connections with it.
pub fn acceptor(identity: &Identity) -> Result<TlsAcceptor, Failure> {
    let mut server = identity.0.clone();
    server.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(server)))
}
