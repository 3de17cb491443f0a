//! The HTTP endpoint.
//!
//! Reading needs no rights beyond reaching the address, which is the operator's choice ([ops] listen, loopback
//! by default). What changes something is a POST with JSON from the endpoint's own origin: a page elsewhere
//! cannot send that from somebody's browser, not even by pointing a name of its own at a loopback address.

use std::net::SocketAddr;
use std::time::Duration;

use axum::Json;
use axum::Router;
use axum::extract::rejection::{JsonRejection, QueryRejection};
use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{Html, IntoResponse, Response};
use axum::routing::{get, post};
use serde::Deserialize;
use serde_json::json;
use tokio::net::TcpListener;
use tokio::sync::oneshot;

use super::{BackfillOf, Command, Ops, Status, metrics, page, report};
use crate::change::Ds;
use crate::runtime::{Error, Result, Shutdown};

/// A cut waits for the transactions before it; who asked waits no longer than this.
const REPLY_MAX: Duration = Duration::from_secs(120);

/// The endpoint, bound but not serving yet: bound first of all, so that a port in use is found before anything
/// has begun.
#[derive(Debug)]
pub struct Server {
    listener: TcpListener,
    address: SocketAddr,
}

impl Server {
    /// Binds `host:port`.
    ///
    /// # Errors
    /// Class `Operator`, naming address and key.
    pub async fn bind(listen: &str) -> Result<Self> {
        let bound = TcpListener::bind(listen).await;
        let bound = bound.and_then(|listener| listener.local_addr().map(|address| (listener, address)));
        match bound {
            Ok((listener, address)) => Ok(Self { listener, address }),
            Err(error) => {
                let mend = if error.kind() == std::io::ErrorKind::AddrInUse {
                    "Another process listens there, perhaps another Tidemark. Choose a free port in [ops] listen."
                } else {
                    "Choose an address of this machine and a port it may use in [ops] listen."
                };
                let message = format!("cannot listen at {listen} ([ops] listen)");
                Err(Error::operator(message).cause(error).mend(mend))
            }
        }
    }

    /// Where it listens; the port is the one chosen by the system if `listen` said 0.
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// Answers until the flag is up and the answers under way are given. Not cancel-safe: dropped, it breaks
    /// connections off.
    pub async fn serve(self, ops: Ops, shutdown: Shutdown) -> Result<()> {
        let router = router(ops, self.address);
        let served =
            axum::serve(self.listener, router).with_graceful_shutdown(async move { shutdown.raised().await });
        served.await.map_err(|error| Error::operator("the HTTP endpoint ended").cause(error))
    }
}

#[derive(Clone)]
struct Shared {
    ops: Ops,
    address: SocketAddr,
}

fn router(ops: Ops, address: SocketAddr) -> Router {
    Router::new()
        .route("/", get(status_page))
        .route("/health", get(health))
        .route("/health/live", get(live))
        .route("/health/ready", get(ready))
        .route("/metrics", get(exposition))
        .route("/api/v1/status", get(status))
        .route("/api/v1/cut", post(cut))
        .route("/api/v1/backfill", post(backfill))
        .route("/api/v1/backfill/pause", post(pause))
        .route("/api/v1/backfill/resume", post(resume))
        .route("/api/v1/days/{ds}", get(day))
        .fallback(async || refuse(StatusCode::NOT_FOUND, "there is nothing here; see / and /api/v1/status"))
        .with_state(Shared { ops, address })
}

async fn health(State(shared): State<Shared>) -> Response {
    let report = shared.ops.report();
    let code = match report.status {
        Status::Failing => StatusCode::SERVICE_UNAVAILABLE,
        Status::Ok | Status::Degraded => StatusCode::OK,
    };
    (code, fresh(), Json(report)).into_response()
}

async fn status(State(shared): State<Shared>) -> Response {
    (fresh(), Json(shared.ops.report())).into_response()
}

/// The process runs and answers. Not more: restarting it mends nothing that is outside of it.
async fn live() -> Response {
    (fresh(), Json(json!({ "status": "ok" }))).into_response()
}

async fn ready(State(shared): State<Shared>) -> Response {
    let report = shared.ops.report();
    let ready = report.is_ready();
    let code = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let components: serde_json::Map<_, _> =
        report.components.iter().map(|(name, part)| (name.to_string(), json!(part.state))).collect();
    (code, fresh(), Json(json!({ "ready": ready, "components": components }))).into_response()
}

async fn exposition(State(shared): State<Shared>) -> Response {
    let headers = [(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")];
    (headers, metrics::render(&shared.ops.report())).into_response()
}

/// Query of the status page.
#[derive(Debug, Default, Deserialize)]
struct PageQuery {
    /// Part of a table's name.
    #[serde(default)]
    table: String,
    /// Whether to show all tables.
    #[serde(default)]
    all: u8,
}

async fn status_page(
    State(shared): State<Shared>,
    query: std::result::Result<Query<PageQuery>, QueryRejection>,
) -> Response {
    let query = query.map(|Query(query)| query).unwrap_or_default();
    let html = page::render(&shared.ops.report(), &query.table, query.all != 0);
    // The page asks nobody but its own origin, whatever a name in the database would like to slip in.
    let policy = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; \
                  form-action 'self'; frame-ancestors 'none'; base-uri 'none'";
    ([(header::CONTENT_SECURITY_POLICY, policy)], fresh(), Html(html)).into_response()
}

async fn day(State(shared): State<Shared>, Path(ds): Path<String>) -> Response {
    let Ok(ds) = ds.parse::<Ds>() else {
        return refuse(StatusCode::BAD_REQUEST, &format!("{ds:?} is not a day; expected YYYY-MM-DD"));
    };
    match report::day_detail(&shared.ops.inner, ds) {
        Some(detail) => (fresh(), Json(detail)).into_response(),
        None => {
            let message = format!(
                "this process remembers nothing of ds={ds}; a published day has its manifest in the lake, \
                 cuts/{}/ds={ds}.json",
                shared.ops.inner.name
            );
            refuse(StatusCode::NOT_FOUND, &message)
        }
    }
}

/// Body of `POST /api/v1/cut`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct CutRequest {
    /// The day; none for today.
    #[serde(default)]
    ds: Option<Ds>,
}

async fn cut(
    State(shared): State<Shared>,
    headers: HeaderMap,
    body: std::result::Result<Json<CutRequest>, JsonRejection>,
) -> Response {
    if let Err(message) = own_origin(&headers, shared.address) {
        return refuse(StatusCode::FORBIDDEN, message);
    }
    // Not JSON, or not called so: 415, 400 or 422 with axum's words.
    let ds = match body {
        Ok(Json(request)) => request.ds,
        Err(rejection) => return refuse(rejection.status(), &rejection.body_text()),
    };
    let (reply, answer) = oneshot::channel();
    match answered(&shared, Command::Cut { ds, reply }, answer).await {
        Ok(ds) => Json(json!({ "ds": ds })).into_response(),
        Err(refused) => refused,
    }
}

/// Body of `POST /api/v1/backfill`, and of those below it.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct BackfillRequest {
    /// Patterns on `schema.table`.
    tables: Vec<String>,
}

async fn backfill(
    State(shared): State<Shared>,
    headers: HeaderMap,
    body: std::result::Result<Json<BackfillRequest>, JsonRejection>,
) -> Response {
    if let Err(message) = own_origin(&headers, shared.address) {
        return refuse(StatusCode::FORBIDDEN, message);
    }
    let of = match body {
        Ok(Json(request)) => BackfillOf::Matching(request.tables),
        Err(rejection) => return refuse(rejection.status(), &rejection.body_text()),
    };
    let (reply, answer) = oneshot::channel();
    match answered(&shared, Command::Backfill { of, reply }, answer).await {
        Ok(accepted) => Json(accepted).into_response(),
        Err(refused) => refused,
    }
}

type Asked = std::result::Result<Json<BackfillRequest>, JsonRejection>;

async fn pause(State(shared): State<Shared>, headers: HeaderMap, body: Asked) -> Response {
    hold(&shared, &headers, body, true).await
}

async fn resume(State(shared): State<Shared>, headers: HeaderMap, body: Asked) -> Response {
    hold(&shared, &headers, body, false).await
}

async fn hold(shared: &Shared, headers: &HeaderMap, body: Asked, pause: bool) -> Response {
    if let Err(message) = own_origin(headers, shared.address) {
        return refuse(StatusCode::FORBIDDEN, message);
    }
    let tables = match body {
        Ok(Json(request)) => request.tables,
        Err(rejection) => return refuse(rejection.status(), &rejection.body_text()),
    };
    let (reply, answer) = oneshot::channel();
    match answered(shared, Command::Hold { tables, pause, reply }, answer).await {
        Ok(accepted) => Json(accepted).into_response(),
        Err(refused) => refused,
    }
}

/// Hands a command to the side that captures and waits for its answer, or gives the response that says why there is none.
async fn answered<T>(
    shared: &Shared,
    command: Command,
    answer: oneshot::Receiver<Result<T>>,
) -> std::result::Result<T, Response> {
    match shared.ops.ask(command) {
        Some(true) => {}
        Some(false) => {
            return Err(refuse(StatusCode::SERVICE_UNAVAILABLE, "other commands are waiting; try again"));
        }
        None => {
            let message = "this process does not capture; ask the one that does";
            return Err(refuse(StatusCode::CONFLICT, message));
        }
    }
    match tokio::time::timeout(REPLY_MAX, answer).await {
        Ok(Ok(Ok(answer))) => Ok(answer),
        Ok(Ok(Err(error))) => {
            let body = json!({
                "error": error.message(), "mend": error.mend_text(), "class": error.class().as_str(),
            });
            Err((StatusCode::CONFLICT, Json(body)).into_response())
        }
        Ok(Err(_)) => Err(refuse(
            StatusCode::SERVICE_UNAVAILABLE,
            "capture was interrupted before it answered; what was asked for may or may not be done: ask again",
        )),
        Err(_) => Err(refuse(
            StatusCode::GATEWAY_TIMEOUT,
            "it is asked for and not done yet; `tidemark status` tells when it is",
        )),
    }
}

/// Whether a browser's request comes from the endpoint's own page. Tools send none of these headers but Host.
fn own_origin(headers: &HeaderMap, address: SocketAddr) -> std::result::Result<(), &'static str> {
    let text = |name| headers.get(name).and_then(|value: &HeaderValue| value.to_str().ok());
    let host = text(header::HOST).unwrap_or_default();
    if address.ip().is_loopback() {
        let name = host
            .rsplit_once(':')
            .map_or(host, |(name, port)| if port.bytes().all(|b| b.is_ascii_digit()) { name } else { host });
        let bare = name.trim_start_matches('[').trim_end_matches(']');
        let loopback =
            bare == "localhost" || bare.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback());
        if !loopback {
            return Err("this endpoint listens on the loopback address and is called by another name");
        }
    }
    if let Some(origin) = text(header::ORIGIN)
        && origin.split_once("://").is_none_or(|(_, from)| from != host)
    {
        return Err("a page of another origin may not ask for this");
    }
    match text(header::HeaderName::from_static("sec-fetch-site")) {
        None | Some("same-origin" | "none") => Ok(()),
        Some(_) => Err("a page of another origin may not ask for this"),
    }
}

fn refuse(code: StatusCode, message: &str) -> Response {
    (code, fresh(), Json(json!({ "error": message }))).into_response()
}

/// What is said is true now, and not later.
const fn fresh() -> [(header::HeaderName, &'static str); 1] {
    [(header::CACHE_CONTROL, "no-store")]
}
