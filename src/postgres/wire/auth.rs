//! Startup and authentication: trust, clear text, MD5, SCRAM-SHA-256 with and without channel binding.
//!
//! Channel binding ties the SCRAM exchange to the server's certificate, so that someone in the middle with a
//! certificate of their own cannot pass the exchange on. With `channel_binding=require` nothing else is
//! accepted: no password leaves, and a server that asks for none is refused, too.
//!
//! Source: <https://www.postgresql.org/docs/current/sasl-authentication.html>, `fe-auth.c` (`pg_SASL_init`,
//! `check_expected_areq`), RFC 5802.

use std::io;

use postgres_protocol::authentication::md5_hash;
use postgres_protocol::authentication::sasl::{
    ChannelBinding, SCRAM_SHA_256, SCRAM_SHA_256_PLUS, ScramSha256,
};
use postgres_protocol::message::frontend;

use super::connection::Connection;
use super::error::{ServerError, unexpected};
use super::hosts::Endpoint;
use super::options::{ChannelBindingMode, ConnectOptions, Password};
use crate::runtime::{Error, Result};

/// What the TLS layer offers for channel binding.
#[derive(Clone, Debug)]
pub(super) enum Binding {
    /// No TLS.
    Plain,
    /// TLS, with the `tls-server-end-point` data, where the certificate has some.
    Tls(Option<Vec<u8>>),
}

/// Sends the startup message, authenticates, and returns when the session is ready for a query.
pub(super) async fn start(
    connection: &mut Connection,
    options: &ConnectOptions,
    endpoint: &Endpoint,
    parameters: &[(&str, &str)],
    binding: Binding,
) -> Result<()> {
    let startup = frontend::startup_message(parameters.iter().copied(), &mut connection.out);
    startup.map_err(|error| Error::usage("the connection settings hold a zero byte").cause(error))?;
    connection.send().await?;
    let mut login = Login { connection, options, endpoint, binding, scram: None, bound: false };
    login.run().await?;
    connection.trust();
    loop {
        let frame = connection.next_frame().await?;
        match frame.tag {
            b'Z' => return Ok(()),
            b'K' => {
                let process = connection.body(frame).first_chunk().copied();
                connection.server_process = process.map(i32::from_be_bytes);
            }
            b'E' => return Err(refused(options, endpoint, ServerError::parse(connection.body(frame)))),
            tag => return Err(unexpected("startup", tag)),
        }
    }
}

fn refused(options: &ConnectOptions, endpoint: &Endpoint, error: ServerError) -> Error {
    let ConnectOptions { user, database, .. } = options;
    error.into_error(format!("cannot log in to {} as {user:?}, database {database:?}", endpoint.address()))
}

struct Login<'a> {
    connection: &'a mut Connection,
    options: &'a ConnectOptions,
    endpoint: &'a Endpoint,
    binding: Binding,
    scram: Option<ScramSha256>,
    /// A SCRAM exchange with channel binding has been completed.
    bound: bool,
}

impl Login<'_> {
    async fn run(&mut self) -> Result<()> {
        loop {
            let frame = self.connection.next_frame().await?;
            let body = self.connection.body(frame).to_vec();
            match frame.tag {
                b'R' => {}
                b'E' => return Err(refused(self.options, self.endpoint, ServerError::parse(&body))),
                // NegotiateProtocolVersion: we ask for 3.0, so there is nothing that could be left out.
                b'v' => continue,
                tag => return Err(unexpected("authentication", tag)),
            }
            let (code, rest) =
                body.split_first_chunk().ok_or_else(|| self.broken("a message was cut short"))?;
            if self.answer(u32::from_be_bytes(*code), rest)? {
                return Ok(());
            }
            if !self.connection.out.is_empty() {
                self.connection.send().await?;
            }
        }
    }

    /// Answers one authentication message; `true` when the server is content.
    fn answer(&mut self, code: u32, rest: &[u8]) -> Result<bool> {
        if matches!(code, 0 | 3 | 5)
            && !self.bound
            && self.options.channel_binding == ChannelBindingMode::Require
        {
            return Err(self.no_binding());
        }
        match code {
            0 if self.scram.is_some() => return Err(self.broken("the server left SCRAM unfinished")),
            0 => return Ok(true),
            3 => {
                let password = self.password()?;
                self.send_password(password.0.as_bytes())?;
            }
            5 => {
                let salt = rest.try_into().map_err(|_| self.broken("the MD5 salt is not four bytes"))?;
                let hash = md5_hash(self.options.user.as_bytes(), self.password()?.0.as_bytes(), salt);
                self.send_password(hash.as_bytes())?;
            }
            10 => self.begin_scram(rest)?,
            11 => {
                let scram = self.scram.as_mut();
                let updated = scram.map(|scram| scram.update(rest).map(|()| scram.message().to_vec()));
                let message = self.scram_step(updated)?;
                frontend::sasl_response(&message, &mut self.connection.out)
                    .map_err(|error| self.broken("SCRAM").cause(error))?;
            }
            12 => {
                let finished = self.scram.as_mut().map(|scram| scram.finish(rest));
                self.scram_step(finished)?;
                self.scram = None;
            }
            2 | 7 | 8 | 9 => return Err(self.unsupported("GSSAPI, Kerberos or SSPI")),
            other => return Err(self.unsupported(&format!("authentication method {other}"))),
        }
        Ok(false)
    }

    fn begin_scram(&mut self, mechanisms: &[u8]) -> Result<()> {
        let offers = |name: &str| mechanisms.split(|byte| *byte == 0).any(|offer| offer == name.as_bytes());
        let wanted = self.options.channel_binding;
        let (mechanism, binding) = match &self.binding {
            Binding::Tls(Some(end_point)) if wanted != ChannelBindingMode::Disable => {
                if offers(SCRAM_SHA_256_PLUS) {
                    (SCRAM_SHA_256_PLUS, ChannelBinding::tls_server_end_point(end_point.clone()))
                } else {
                    // Says that we could: a server that did offer it then knows that someone took it away.
                    (SCRAM_SHA_256, ChannelBinding::unrequested())
                }
            }
            _ => (SCRAM_SHA_256, ChannelBinding::unsupported()),
        };
        if wanted == ChannelBindingMode::Require && mechanism != SCRAM_SHA_256_PLUS {
            return Err(self.no_binding());
        }
        if !offers(mechanism) {
            return Err(self.unsupported("SASL mechanisms other than SCRAM-SHA-256"));
        }
        self.bound = mechanism == SCRAM_SHA_256_PLUS;
        let scram = ScramSha256::new(self.password()?.0.as_bytes(), binding);
        frontend::sasl_initial_response(mechanism, scram.message(), &mut self.connection.out)
            .map_err(|error| self.broken("SCRAM").cause(error))?;
        self.scram = Some(scram);
        Ok(())
    }

    fn scram_step<T>(&self, result: Option<io::Result<T>>) -> Result<T> {
        match result {
            Some(Ok(value)) => Ok(value),
            Some(Err(error)) => Err(self
                .broken("the server failed the SCRAM exchange")
                .cause(error)
                .mend("Whatever answers there may not know the password, and so may not be your server.")),
            None => Err(self.broken("a SCRAM message came before SCRAM had begun")),
        }
    }

    fn send_password(&mut self, password: &[u8]) -> Result<()> {
        frontend::password_message(password, &mut self.connection.out)
            .map_err(|_| Error::usage("the source's password holds a zero byte"))
    }

    fn password(&self) -> Result<Password> {
        self.options.find_password(self.endpoint).ok_or_else(|| {
            let ConnectOptions { user, .. } = self.options;
            Error::operator(format!(
                "{} asks for a password of {user:?}, and there is none",
                self.connection.address
            ))
            .mend("Give it in the source URL, a password file, PGPASSWORD or .pgpass (mode 0600).")
        })
    }

    fn no_binding(&self) -> Error {
        let address = &self.connection.address;
        let error =
            Error::operator(format!("channel_binding=require, but {address} authenticates without it"));
        match self.binding {
            Binding::Plain => error.mend("Channel binding needs TLS: set sslmode=require or stricter."),
            Binding::Tls(None) => {
                error.mend("The server's certificate is of a kind that has no channel binding.")
            }
            Binding::Tls(Some(_)) => {
                error.mend("Let pg_hba.conf ask for scram-sha-256, with a SCRAM password.")
            }
        }
    }

    fn unsupported(&self, what: &str) -> Error {
        Error::operator(format!(
            "the server at {} asks for {what}, which is not supported",
            self.connection.address
        ))
        .mend("Let pg_hba.conf ask for scram-sha-256 or a client certificate.")
    }

    fn broken(&self, what: &str) -> Error {
        Error::operator(format!("authentication with {} failed: {what}", self.connection.address))
    }
}
