//! The socket under a session: TCP, a Unix socket, or TLS on TCP.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use rustix::net::sockopt;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::client::TlsStream;

use super::hosts::{Endpoint, Host};
use super::options::Keepalives;
use crate::runtime::{Error, Result};

/// One of the three.
pub(super) enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
    Tls(Box<TlsStream<TcpStream>>),
}

/// Connects TCP; the name is looked up anew, and every address of it is tried.
pub(super) async fn connect_tcp(endpoint: &Endpoint, keepalives: &Keepalives) -> Result<TcpStream> {
    let connected = match (&endpoint.host_address, &endpoint.host) {
        (Some(address), _) => TcpStream::connect((*address, endpoint.port)).await,
        (None, Host::Tcp(host)) => TcpStream::connect((host.as_str(), endpoint.port)).await,
        (None, Host::Unix(_)) => return Err(Error::usage("a Unix socket's directory is no host name")),
    };
    let stream = connected.map_err(|error| cannot_connect(endpoint, error))?;
    tune(&stream, keepalives).map_err(|error| cannot_connect(endpoint, error))?;
    Ok(stream)
}

/// Connects the Unix socket.
pub(super) async fn connect_unix(endpoint: &Endpoint) -> Result<Stream> {
    let connected = UnixStream::connect(endpoint.socket_path()).await;
    connected.map(Stream::Unix).map_err(|error| cannot_connect(endpoint, error))
}

fn cannot_connect(endpoint: &Endpoint, error: io::Error) -> Error {
    Error::retry(format!("cannot connect to the server at {}", endpoint.address())).cause(error).mend(
        "Check host and port in the source URL, that the server runs, and that the network lets us through.",
    )
}

fn tune(stream: &TcpStream, keepalives: &Keepalives) -> io::Result<()> {
    stream.set_nodelay(true)?;
    sockopt::set_socket_keepalive(stream, keepalives.enabled)?;
    if keepalives.enabled {
        let seconds = |time: Duration| time.max(Duration::from_secs(1));
        if let Some(idle) = keepalives.idle {
            sockopt::set_tcp_keepidle(stream, seconds(idle))?;
        }
        if let Some(interval) = keepalives.interval {
            sockopt::set_tcp_keepintvl(stream, seconds(interval))?;
        }
        if let Some(count) = keepalives.count {
            sockopt::set_tcp_keepcnt(stream, count)?;
        }
    }
    if let Some(timeout) = keepalives.user_timeout {
        sockopt::set_tcp_user_timeout(stream, timeout.as_millis().try_into().unwrap_or(u32::MAX))?;
    }
    Ok(())
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Unix(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Tls(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_write(cx, buf),
            Self::Unix(stream) => Pin::new(stream).poll_write(cx, buf),
            Self::Tls(stream) => Pin::new(stream).poll_write(cx, buf),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_flush(cx),
            Self::Unix(stream) => Pin::new(stream).poll_flush(cx),
            Self::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Unix(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}
