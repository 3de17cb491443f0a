//! A part of the process that can be well, wait or fail.

use std::sync::{Arc, Mutex};

use serde::{Deserialize, Serialize};

use super::{lock, now_ms};
use crate::runtime::{Class, Error};

/// How a component is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ComponentState {
    /// Has not said anything yet.
    Starting,
    /// Does its work.
    Ok,
    /// Another process does its work; takes over when that one ends.
    Standby,
    /// Tries again by itself.
    Waiting,
    /// Needs a person.
    Failed,
}

impl ComponentState {
    /// The word used in JSON and metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Ok => "ok",
            Self::Standby => "standby",
            Self::Waiting => "waiting",
            Self::Failed => "failed",
        }
    }
}

/// Handle of a component. Clones share it. Saying the same again is cheap and keeps the "since".
#[derive(Clone, Debug)]
pub struct Component {
    name: &'static str,
    status: Arc<Mutex<ComponentStatus>>,
}

#[derive(Clone, Debug)]
pub(super) struct ComponentStatus {
    pub state: ComponentState,
    /// When it came into this state.
    pub since_ms: i64,
    /// The reason of this state, or, when it is well, of the trouble before.
    pub reason: Option<String>,
    pub mend: Option<String>,
}

impl Component {
    pub(super) fn new(name: &'static str, now_ms: i64) -> Self {
        let status =
            ComponentStatus { state: ComponentState::Starting, since_ms: now_ms, reason: None, mend: None };
        Self { name, status: Arc::new(Mutex::new(status)) }
    }

    /// Its name.
    pub const fn name(&self) -> &'static str {
        self.name
    }

    /// It does its work. The last reason is kept, to be shown.
    pub fn ok(&self) {
        let mut status = lock(&self.status);
        if status.state != ComponentState::Ok {
            status.state = ComponentState::Ok;
            status.since_ms = now_ms();
        }
    }

    /// It begins its work (anew).
    pub fn starting(&self) {
        let mut status = lock(&self.status);
        if status.state != ComponentState::Starting {
            status.state = ComponentState::Starting;
            status.since_ms = now_ms();
        }
    }

    /// Another process does its work, which is as it should be.
    pub fn standby(&self, reason: impl Into<String>) {
        self.set(ComponentState::Standby, reason.into(), None);
    }

    /// It tries again by itself.
    pub fn waiting(&self, reason: impl Into<String>) {
        self.set(ComponentState::Waiting, reason.into(), None);
    }

    /// It met an error: waiting if trying again can help, else failed.
    pub fn failed(&self, error: &Error) {
        let state =
            if error.class() == Class::Retry { ComponentState::Waiting } else { ComponentState::Failed };
        self.set(state, error.message(), error.mend_text().map(str::to_owned));
    }

    pub(super) fn status(&self) -> ComponentStatus {
        lock(&self.status).clone()
    }

    fn set(&self, state: ComponentState, reason: String, mend: Option<String>) {
        let mut status = lock(&self.status);
        if status.state != state {
            status.since_ms = now_ms();
        }
        *status = ComponentStatus { state, since_ms: status.since_ms, reason: Some(reason), mend };
    }
}
