//! TLS by rustls: whom a connection trusts, as whom it shows itself, and what a refusal means.

use super::options::ConnectOptions;
use crate::connect::error::BusError;
use redis::{Client, ClientTlsConfig, ConnectionAddr, ConnectionInfo, TlsCertificates};
use std::error::Error;
use std::fmt;
use std::io;
use std::path::Path;
use std::sync::{Arc, OnceLock};
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::{self, AlertDescription, CertificateError, ClientConfig, RootCertStore};

/// What connections trust and show. Cheap to clone; files are read once.
#[derive(Clone, Default)]
pub struct Tls {
    files: Option<Arc<Files>>,
    config: Arc<OnceLock<Arc<ClientConfig>>>,
}

/// The files' bytes.
struct Files {
    ca: Option<Vec<u8>>,
    /// Certificate chain and key.
    identity: Option<(Vec<u8>, Vec<u8>)>,
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Tls")
    }
}

impl Tls {
    /// Reads the files that the options name. Without any, what the system trusts is trusted, and
    /// no certificate is shown.
    ///
    /// # Errors
    /// `Tls`, naming the option and its file.
    pub fn read(options: &ConnectOptions) -> Result<Self, BusError> {
        let file = |setting: &str, path: &str| -> Result<Option<Vec<u8>>, BusError> {
            if path.is_empty() {
                return Ok(None);
            }
            let read = std::fs::read(Path::new(path));
            read.map(Some).map_err(|error| {
                BusError::Tls(format!("{setting}: {path} cannot be read: {error}"))
            })
        };
        let ca = file("tls_ca", &options.tls_ca)?;
        let cert = file("tls_cert", &options.tls_cert)?;
        let key = file("tls_key", &options.tls_key)?;
        let no_pem = |setting: &str, path: &str, what: &str| {
            BusError::Tls(format!("{setting}: {path} holds no {what} in PEM"))
        };
        if ca.as_deref().is_some_and(|pem| certificates(pem).is_none()) {
            return Err(no_pem("tls_ca", &options.tls_ca, "certificate"));
        }
        if cert
            .as_deref()
            .is_some_and(|pem| certificates(pem).is_none())
        {
            return Err(no_pem("tls_cert", &options.tls_cert, "certificate"));
        }
        if let Some(pem) = &key
            && PrivateKeyDer::from_pem_slice(pem).is_err()
        {
            return Err(no_pem("tls_key", &options.tls_key, "private key"));
        }
        let identity = cert.zip(key);
        if ca.is_none() && identity.is_none() {
            return Ok(Self::default());
        }
        let tls = Self {
            files: Some(Arc::new(Files { ca, identity })),
            config: Arc::default(),
        };
        // A key of another certificate is told now, not at the first connection.
        tls.config()?;
        Ok(tls)
    }

    /// The connection with these certificates, if it is one by TLS.
    pub(crate) fn apply(&self, info: ConnectionInfo) -> Result<ConnectionInfo, BusError> {
        let (Some(files), ConnectionAddr::TcpTls { .. }) = (&self.files, info.addr()) else {
            return Ok(info);
        };
        let identity = files.identity.as_ref();
        let certificates = TlsCertificates {
            client_tls: identity.map(|(cert, key)| ClientTlsConfig {
                client_cert: cert.clone(),
                client_key: key.clone(),
            }),
            root_cert: files.ca.clone(),
        };
        let client = Client::build_with_tls(info, certificates)?;
        Ok(client.get_connection_info().clone())
    }

    /// The same for a hand-written connection.
    pub(crate) fn config(&self) -> Result<Arc<ClientConfig>, BusError> {
        if let Some(config) = self.config.get() {
            return Ok(config.clone());
        }
        let files = self.files.as_deref();
        let roots = match files.and_then(|files| files.ca.as_deref()) {
            Some(pem) => {
                let mut roots = RootCertStore::empty();
                roots.add_parsable_certificates(certificates(pem).unwrap_or_default());
                roots
            }
            None => system()?,
        };
        let builder = ClientConfig::builder().with_root_certificates(roots);
        let config = match files.and_then(|files| files.identity.as_ref()) {
            None => builder.with_no_client_auth(),
            Some((cert, key)) => {
                let unusable = |why: String| {
                    BusError::Tls(format!("tls_cert and tls_key cannot be used: {why}"))
                };
                let key =
                    PrivateKeyDer::from_pem_slice(key).map_err(|e| unusable(e.to_string()))?;
                builder
                    .with_client_auth_cert(certificates(cert).unwrap_or_default(), key)
                    .map_err(|error| match error {
                        rustls::Error::InconsistentKeys(_) => {
                            unusable("the key is not the certificate's".into())
                        }
                        error => unusable(error.to_string()),
                    })?
            }
        };
        Ok(self.config.get_or_init(|| Arc::new(config)).clone())
    }
}

/// The certificates in PEM; `None` if the file has none, or one is damaged.
fn certificates(pem: &[u8]) -> Option<Vec<CertificateDer<'static>>> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    found.ok().filter(|found| !found.is_empty())
}

/// What the system trusts.
fn system() -> Result<RootCertStore, BusError> {
    let found = rustls_native_certs::load_native_certs();
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(found.certs);
    if roots.is_empty() {
        let why = found.errors.first().map(ToString::to_string);
        return Err(BusError::Tls(format!(
            "no certificate authority is known on this system{}: set tls_ca",
            why.map_or_else(String::new, |why| format!(" ({why})"))
        )));
    }
    Ok(roots)
}

/// What to do about an error, if TLS is its reason.
pub(crate) fn advice(error: &(dyn Error + 'static)) -> Option<&'static str> {
    let mut next = Some(error);
    while let Some(error) = next {
        // The client library shares the error that it carries.
        if let Some(shared) = error.downcast_ref::<Arc<dyn Error + Send + Sync>>() {
            next = Some(shared.as_ref());
            continue;
        }
        let inside = error.downcast_ref::<io::Error>();
        let inside = inside.and_then(io::Error::get_ref);
        let tls = inside.and_then(|inside| inside.downcast_ref::<rustls::Error>());
        if let Some(tls) = tls.or_else(|| error.downcast_ref()) {
            return mend(tls);
        }
        next = error.source();
    }
    None
}

fn mend(error: &rustls::Error) -> Option<&'static str> {
    Some(match error {
        rustls::Error::InvalidCertificate(why) => match why {
            CertificateError::UnknownIssuer | CertificateError::BadSignature => {
                "the server's certificate is of no authority that is trusted here: \
                 set tls_ca to the file of its authority"
            }
            CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
                "the server's certificate has expired: renew it, or set this machine's clock right"
            }
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
                "the server's certificate is not valid yet: set this machine's clock right"
            }
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
                "the server's certificate is for another name: use one of its names in redis_url, \
                 or give the server a certificate for this one"
            }
            _ => return None,
        },
        rustls::Error::AlertReceived(alert) => match alert {
            AlertDescription::CertificateRequired | AlertDescription::HandshakeFailure => {
                "the server wants a client certificate: set tls_cert and tls_key"
            }
            AlertDescription::UnknownCA => {
                "the server does not trust the authority of tls_cert: have it signed by the one in \
                 the server's tls-ca-cert-file"
            }
            AlertDescription::CertificateExpired => {
                "the certificate in tls_cert has expired: renew it"
            }
            AlertDescription::BadCertificate
            | AlertDescription::CertificateRevoked
            | AlertDescription::UnsupportedCertificate
            | AlertDescription::CertificateUnknown => {
                "the server refuses the certificate in tls_cert: have a client certificate issued"
            }
            _ => return None,
        },
        rustls::Error::InvalidMessage(_) => {
            "the server does not speak TLS on this port: use its tls-port, or redis:// where the way \
             is safe"
        }
        _ => return None,
    })
}
