//! Asking the running process, at `[ops] listen`.

use std::time::Duration;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use ureq::http::Response;
use ureq::{Agent, Body};

use crate::config::Config;
use crate::runtime::{Error, Result};

/// Why a request was refused.
#[derive(Debug, Deserialize)]
struct Refused {
    error: String,
    mend: Option<String>,
}

/// The endpoint of the running process.
pub(super) struct Client {
    base: String,
    agent: Agent,
}

impl Client {
    /// Waits `answer_max` for each answer.
    pub(super) fn new(config: &Config, answer_max: Duration) -> Self {
        let settings = Agent::config_builder()
            .http_status_as_error(false)
            .timeout_connect(Some(Duration::from_secs(5)))
            .timeout_global(Some(answer_max))
            // It is this machine, or one beside it: never by way of a proxy.
            .proxy(None)
            .build();
        Self { base: base_url(&config.ops.listen), agent: settings.into() }
    }

    pub(super) fn get(&self, path: &str) -> Result<Response<Body>> {
        self.agent.get(format!("{}{path}", self.base)).call().map_err(|error| self.unanswered(error))
    }

    pub(super) fn post(&self, path: &str, body: &serde_json::Value) -> Result<Response<Body>> {
        let request = self.agent.post(format!("{}{path}", self.base));
        request.send_json(body).map_err(|error| self.unanswered(error))
    }

    /// The body as JSON of an expected shape.
    pub(super) fn read<T: DeserializeOwned>(&self, mut answer: Response<Body>) -> Result<T> {
        // A status of ten thousand tables is some megabytes.
        let limit = 256 * 1024 * 1024;
        answer.body_mut().with_config().limit(limit).read_json().map_err(|error| {
            Error::operator(format!("what answers at {} is not what was expected", self.base))
                .cause(error)
                .mend("Is it Tidemark, of the same version, that listens at [ops] listen?")
        })
    }

    /// The body of an answer to a request which may be refused.
    pub(super) fn accepted<T: DeserializeOwned>(&self, answer: Response<Body>) -> Result<T> {
        if answer.status().is_success() {
            return self.read(answer);
        }
        let refused: Refused = self.read(answer)?;
        let error = Error::operator(refused.error);
        Err(match refused.mend {
            Some(mend) => error.mend(mend),
            None => error,
        })
    }

    fn unanswered(&self, error: ureq::Error) -> Error {
        let base = &self.base;
        if matches!(error, ureq::Error::Timeout(_)) {
            return Error::operator(format!("no answer from {base} in time"))
                .cause(error)
                .mend("The process is there and does not answer: look at its log.");
        }
        Error::operator(format!("nothing answers at {base} ([ops] listen)"))
            .cause(error)
            .mend("Start `tidemark run`, or name the configuration of the process that runs with --config.")
    }
}

/// A process that listens everywhere is asked on the loopback address.
fn base_url(listen: &str) -> String {
    let address = match listen.rsplit_once(':') {
        Some(("0.0.0.0", port)) => format!("127.0.0.1:{port}"),
        Some(("[::]", port)) => format!("[::1]:{port}"),
        _ => listen.to_owned(),
    };
    format!("http://{address}")
}

#[cfg(test)]
mod tests {
    use super::base_url;

    #[test]
    fn a_process_that_listens_everywhere_is_asked_here() {
        assert_eq!(base_url("0.0.0.0:8080"), "http://127.0.0.1:8080");
        assert_eq!(base_url("[::]:80"), "http://[::1]:80");
        assert_eq!(base_url("10.0.0.7:8080"), "http://10.0.0.7:8080");
    }
}
