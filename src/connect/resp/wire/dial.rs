//! The stream under a wire: TCP, TLS or a socket of this machine.

use crate::connect::error::BusError;
use crate::connect::tls::Tls;
use redis::io::tcp::socket2::SockRef;
use redis::{ConnectionAddr, ErrorKind, RedisError};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::pki_types::ServerName;

/// A byte stream to a server.
pub(super) trait Stream: AsyncRead + AsyncWrite + Unpin + Send + Sync {}

impl<S: AsyncRead + AsyncWrite + Unpin + Send + Sync> Stream for S {}

pub(super) async fn connect(
    address: &ConnectionAddr,
    tls: &Tls,
) -> Result<Box<dyn Stream>, BusError> {
    Ok(match address {
        ConnectionAddr::Tcp(host, port) => Box::new(tcp(host, *port).await?),
        ConnectionAddr::TcpTls {
            host,
            port,
            insecure: false,
            ..
        } => {
            let name = ServerName::try_from(host.clone())
                .map_err(|_| misconfigured(format!("{host:?} cannot be the name of a server")))?;
            let connector = TlsConnector::from(tls.config()?);
            let stream = connector.connect(name, tcp(host, *port).await?).await;
            Box::new(stream.map_err(RedisError::from)?)
        }
        ConnectionAddr::Unix(path) => {
            Box::new(UnixStream::connect(path).await.map_err(RedisError::from)?)
        }
        _ => {
            return Err(misconfigured(
                "TLS without a check of the server's certificate is not supported".into(),
            ));
        }
    })
}

async fn tcp(host: &str, port: u16) -> Result<TcpStream, BusError> {
    let stream = TcpStream::connect((host, port)).await;
    let stream = stream.map_err(RedisError::from)?;
    let socket = SockRef::from(&stream);
    crate::connect::socket::tune(&socket).map_err(RedisError::from)?;
    Ok(stream)
}

fn misconfigured(what: String) -> BusError {
    BusError::Redis(RedisError::from((
        ErrorKind::InvalidClientConfig,
        "the connection cannot be made",
        what,
    )))
}
