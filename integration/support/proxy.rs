//! A network between two processes that can be cut: a TCP proxy with a switch.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// What the network does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Network {
    /// Works.
    Up,
    /// Works, and each piece takes a quarter of a second more.
    Slow,
    /// Loses everything: nothing arrives, nobody is told.
    Stalled,
    /// Connections break, and new ones are refused at once.
    Cut,
    /// The client's side of connections breaks, the server never hears of it; new connections work.
    HalfOpen,
}

/// A proxy in front of a port of 127.0.0.1.
#[derive(Debug)]
pub struct Proxy {
    port: u16,
    network: Arc<watch::Sender<Network>>,
    connections: Arc<AtomicUsize>,
}

/// A connection, which counts until this is dropped.
struct Counted(Arc<AtomicUsize>);

impl Counted {
    fn new(connections: &Arc<AtomicUsize>) -> Self {
        connections.fetch_add(1, Ordering::SeqCst);
        Self(Arc::clone(connections))
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Proxy {
    /// Forwards to `server`.
    pub async fn start(server: u16) -> Self {
        Self::start_at(("127.0.0.1", super::free_port()), server).await
    }

    /// Forwards from an address of this machine.
    pub async fn start_at(address: (&str, u16), server: u16) -> Self {
        let listener = TcpListener::bind(address).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let network = Arc::new(watch::Sender::new(Network::Up));
        let connections = Arc::new(AtomicUsize::new(0));
        let (changes, count) = (Arc::clone(&network), Arc::clone(&connections));
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let counted = Counted::new(&count);
                if *changes.borrow() == Network::Cut {
                    continue;
                }
                let Ok(server) = TcpStream::connect(("127.0.0.1", server)).await else { continue };
                let network = changes.subscribe();
                tokio::spawn(async move {
                    forward(client, server, network).await;
                    drop(counted);
                });
            }
        });
        Self { port, network, connections }
    }

    /// Where to connect.
    pub const fn port(&self) -> u16 {
        self.port
    }

    /// How many connections are open, or half open.
    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }

    /// Changes the network. Connections learn of it a moment later, and perhaps never of what is changed again by then.
    pub fn set(&self, network: Network) {
        self.network.send_replace(network);
    }
}

/// Passes bytes both ways until a side closes or the network is cut.
async fn forward(client: TcpStream, server: TcpStream, mut network: watch::Receiver<Network>) {
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_server, mut to_server) = server.into_split();
    let (mut up, mut down) = (vec![0; 65536], vec![0; 65536]);
    loop {
        let state = *network.borrow();
        if state == Network::Cut {
            return;
        }
        if state == Network::Stalled {
            if network.changed().await.is_err() {
                return;
            }
            continue;
        }
        tokio::select! {
            changed = network.changed() => {
                let state = *network.borrow();
                match state {
                    _ if changed.is_err() => return,
                    Network::Cut => return,
                    Network::HalfOpen => {
                        drop((from_client, to_client));
                        // Holds the server's side as it is, and reads nothing.
                        let _held = (from_server, to_server);
                        std::future::pending::<()>().await;
                        return;
                    }
                    Network::Up | Network::Slow | Network::Stalled => {}
                }
            }
            read = from_client.read(&mut up) => match later(&network, read).await {
                Ok(count) if count > 0 => if to_server.write_all(&up[..count]).await.is_err() { return },
                _ => return,
            },
            read = from_server.read(&mut down) => match later(&network, read).await {
                Ok(count) if count > 0 => if to_client.write_all(&down[..count]).await.is_err() { return },
                _ => return,
            },
        }
    }
}

async fn later<T>(network: &watch::Receiver<Network>, read: T) -> T {
    if *network.borrow() == Network::Slow {
        tokio::time::sleep(std::time::Duration::from_millis(250)).await;
    }
    read
}
