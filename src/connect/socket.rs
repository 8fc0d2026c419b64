//! What every connection's socket has, and how long it may take.

use redis::io::tcp::{TcpSettings, socket2};
use std::time::Duration;

/// How long making a connection may take.
pub(crate) const CONNECT: Duration = Duration::from_secs(3);
/// How long what was sent may stay unacknowledged by the other side's kernel.
#[cfg(target_os = "linux")]
const UNACKNOWLEDGED: Duration = Duration::from_secs(10);

/// What every connection of the client library has.
pub(crate) fn tcp_settings() -> TcpSettings {
    let tcp = TcpSettings::default()
        .set_nodelay(true)
        .set_keepalive(keepalive());
    #[cfg(target_os = "linux")]
    let tcp = tcp.set_user_timeout(UNACKNOWLEDGED);
    tcp
}

/// A half-open link is noticed after 10 s and three probes.
fn keepalive() -> socket2::TcpKeepalive {
    socket2::TcpKeepalive::new()
        .with_time(Duration::from_secs(10))
        .with_interval(Duration::from_secs(3))
        .with_retries(3)
}

/// Sets on a socket what every connection has.
pub(crate) fn tune(socket: &socket2::SockRef<'_>) -> std::io::Result<()> {
    socket.set_tcp_nodelay(true)?;
    socket.set_tcp_keepalive(&keepalive())?;
    #[cfg(target_os = "linux")]
    socket.set_tcp_user_timeout(Some(UNACKNOWLEDGED))?;
    Ok(())
}
