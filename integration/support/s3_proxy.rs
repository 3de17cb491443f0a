//! An HTTP proxy before a store: it answers as a store in trouble does, cuts connections before and after a request was
//! carried out, stalls, and refuses nothing. It notes what the store was asked and what came of it.
//!
//! Every request is read whole, and has a connection of its own to the store.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// What happens to a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    /// Nothing.
    None,
    /// Not carried out: `503 SlowDown`.
    SlowDown,
    /// Not carried out: `501 NotImplemented`, of a store that never does. Not among those of [`S3Proxy::disturb`].
    NotImplemented,
    /// Not carried out: the connection breaks.
    CutBefore,
    /// Carried out; the connection breaks before the answer.
    CutAfter,
    /// Carried out, and answered by `500 InternalError`.
    ErrorAfter,
    /// Carried out; the answer never comes.
    Stall,
    /// Carried out; the connection breaks within the answer.
    HalfAnswer,
}

const FAULTS: [Fault; 6] =
    [Fault::SlowDown, Fault::CutBefore, Fault::CutAfter, Fault::ErrorAfter, Fault::Stall, Fault::HalfAnswer];

/// A request that the store has carried out.
#[derive(Clone, Debug)]
pub struct Carried {
    /// `PUT`, `GET` …
    pub method: String,
    /// Path and query as they were sent.
    pub target: String,
    /// The store's answer.
    pub status: u16,
    /// SHA-256 of the body.
    pub sha256: String,
    /// Whether it was to fail if the object exists.
    pub conditional: bool,
    /// The request's line and headers.
    pub head: String,
}

#[derive(Debug)]
struct State {
    random: StdRng,
    /// How many of a hundred requests meet a fault.
    percent: u32,
    /// What all requests of a kind meet, by a part of "METHOD target".
    always: Option<(String, Fault)>,
    ignores_conditions: bool,
    carried: Vec<Carried>,
    faults: BTreeMap<Fault, u32>,
}

/// See the module's head.
#[derive(Clone, Debug)]
pub struct S3Proxy {
    port: u16,
    state: Arc<Mutex<State>>,
}

impl S3Proxy {
    /// Forwards to `server`, and lets everything pass for now.
    pub async fn start(server: u16, seed: u64) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let state = Arc::new(Mutex::new(State {
            random: StdRng::seed_from_u64(seed),
            percent: 0,
            always: None,
            ignores_conditions: false,
            carried: Vec::new(),
            faults: BTreeMap::new(),
        }));
        let shared = Arc::clone(&state);
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(serve(client, server, Arc::clone(&shared)));
            }
        });
        Self { port, state }
    }

    /// Where to connect.
    pub const fn port(&self) -> u16 {
        self.port
    }

    /// So many of a hundred requests meet a fault from now on.
    pub fn disturb(&self, percent: u32) {
        self.state.lock().unwrap().percent = percent;
    }

    /// All requests whose "METHOD target" contains `part`, or each part between `*`, meet that fault from now on.
    pub fn always(&self, part: &str, fault: Fault) {
        self.state.lock().unwrap().always = Some((part.to_owned(), fault));
    }

    /// Ends [`Self::disturb`] and [`Self::always`].
    pub fn calm(&self) {
        let mut state = self.state.lock().unwrap();
        (state.percent, state.always) = (0, None);
    }

    /// Refuses no create: a store that does not know `If-None-Match`.
    pub fn ignore_conditions(&self) {
        self.state.lock().unwrap().ignores_conditions = true;
    }

    /// What the store has carried out.
    pub fn carried(&self) -> Vec<Carried> {
        self.state.lock().unwrap().carried.clone()
    }

    /// How often each fault was met.
    pub fn faults(&self) -> BTreeMap<Fault, u32> {
        self.state.lock().unwrap().faults.clone()
    }

    /// Panics where an object was made over one that was there, with other bytes or without the condition.
    pub fn assert_nothing_was_replaced(&self) {
        let mut held: BTreeMap<String, String> = BTreeMap::new();
        let carried = self.carried();
        let made = |one: &&Carried| (200..300).contains(&one.status);
        for one in carried.iter().filter(made).filter(|one| !one.target.contains('?')) {
            match one.method.as_str() {
                "DELETE" => drop(held.remove(&one.target)),
                "PUT" => {
                    assert!(one.conditional, "{} was put without a condition", one.target);
                    let before = held.insert(one.target.clone(), one.sha256.clone());
                    assert_eq!(before, None, "{} was made twice", one.target);
                }
                _ => {}
            }
        }
        assert!(!held.is_empty(), "nothing was made through the proxy");
    }
}

async fn serve(mut client: TcpStream, server: u16, state: Arc<Mutex<State>>) {
    let Some((head, body)) = read_request(&mut client).await else { return };
    let mut words = head.lines().next().unwrap_or_default().split(' ').map(str::to_owned);
    let (method, target) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let conditional = head.to_ascii_lowercase().contains("\r\nif-none-match: *");
    let fault = choose(&state, &format!("{method} {target}"));
    match fault {
        Fault::CutBefore => return,
        Fault::SlowDown => return answer(&mut client, "503 Service Unavailable", "SlowDown").await,
        Fault::NotImplemented => return answer(&mut client, "501 Not Implemented", "NotImplemented").await,
        _ => {}
    }
    let Some(answered) = forward(&head, &body, server).await else { return };
    let status = std::str::from_utf8(&answered[9..12]).unwrap().parse::<u16>().unwrap();
    let sha256 = tidemark::lake::sha256(&body);
    state.lock().unwrap().carried.push(Carried { method, target, status, sha256, conditional, head });
    if status == 412 && state.lock().unwrap().ignores_conditions {
        let created = "HTTP/1.1 200 OK\r\nETag: \"0\"\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
        let _ = client.write_all(created.as_bytes()).await;
        return;
    }
    let sent = match fault {
        Fault::CutAfter => &[],
        Fault::ErrorAfter => return answer(&mut client, "500 Internal Server Error", "InternalError").await,
        Fault::Stall => {
            // Until the client gives up.
            let _ = client.read(&mut [0]).await;
            &[]
        }
        Fault::HalfAnswer => &answered[..answered.len() - answered.len() / 3],
        _ => &answered[..],
    };
    let _ = client.write_all(sent).await;
    let _ = client.shutdown().await;
}

fn choose(state: &Mutex<State>, request: &str) -> Fault {
    let mut state = state.lock().unwrap();
    let always = state.always.as_ref().filter(|(part, _)| part.split('*').all(|p| request.contains(p)));
    let fault = match always.map(|(_, fault)| *fault) {
        Some(fault) => fault,
        None => {
            let (meets, which) =
                (state.random.random_range(0..100), state.random.random_range(0..FAULTS.len()));
            if meets < state.percent { FAULTS[which] } else { Fault::None }
        }
    };
    *state.faults.entry(fault).or_default() += 1;
    fault
}

async fn answer(client: &mut TcpStream, status: &str, code: &str) {
    let body = format!("<Error><Code>{code}</Code><Message>trouble</Message></Error>");
    let length = body.len();
    let text = format!("HTTP/1.1 {status}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}");
    let _ = client.write_all(text.as_bytes()).await;
    let _ = client.shutdown().await;
}

/// The head with the blank line that ends it, and the body.
async fn read_request(client: &mut TcpStream) -> Option<(String, Vec<u8>)> {
    let mut bytes = Vec::new();
    let end = loop {
        if let Some(at) = bytes.windows(4).position(|four| four == b"\r\n\r\n") {
            break at + 4;
        }
        if client.read_buf(&mut bytes).await.ok()? == 0 {
            return None;
        }
    };
    let mut body = bytes.split_off(end);
    let head = String::from_utf8(bytes).unwrap();
    let length = head.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse::<usize>().unwrap())
    });
    while body.len() < length.unwrap_or(0) {
        if client.read_buf(&mut body).await.ok()? == 0 {
            return None;
        }
    }
    Some((head, body))
}

async fn forward(head: &str, body: &[u8], server: u16) -> Option<Vec<u8>> {
    let mut server = TcpStream::connect(("127.0.0.1", server)).await.ok()?;
    let (line, rest) = head.split_once("\r\n")?;
    server.write_all(format!("{line}\r\nConnection: close\r\n{rest}").as_bytes()).await.ok()?;
    server.write_all(body).await.ok()?;
    let mut answered = Vec::new();
    server.read_to_end(&mut answered).await.ok()?;
    (answered.len() > 12).then_some(answered)
}
