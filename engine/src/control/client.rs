//! The client's side of the control socket, for the command line: one call, blocking.

use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::problem::{Problem, Problems};
use super::protocol::INTERFACE;

/// How long the daemon may take: a change waits for storage and for workers.
const PATIENCE: Duration = Duration::from_secs(30);

/// Why a call came to nothing.
#[derive(Debug)]
pub enum CallError {
    /// Nobody answers on the socket.
    NotRunning(String),
    /// The daemon refused, and nothing changed.
    Refused(Problems),
}

impl std::fmt::Display for CallError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::NotRunning(text) => f.write_str(text),
            Self::Refused(problems) => write!(f, "{problems}"),
        }
    }
}

impl std::error::Error for CallError {}

/// An open connection.
pub struct Client {
    stream: BufReader<UnixStream>,
}

#[derive(Serialize)]
struct Call<'a, P> {
    method: String,
    parameters: &'a P,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    more: bool,
}

#[derive(Deserialize)]
struct Reply<T> {
    parameters: Option<T>,
    #[serde(default)]
    continues: bool,
    error: Option<String>,
}

impl Client {
    /// Connects.
    ///
    /// # Errors
    /// [`CallError::NotRunning`], with what to do.
    pub fn connect(path: &Path) -> Result<Self, CallError> {
        let stream = UnixStream::connect(path).map_err(|error| {
            let next = match error.kind() {
                std::io::ErrorKind::PermissionDenied => "ask as root, or as a member of engine.socket-group",
                _ => "start aditd, or name its socket with --socket",
            };
            CallError::NotRunning(format!("cannot reach aditd at {}: {error}; {next}", path.display()))
        })?;
        let lost = |error| CallError::NotRunning(format!("{}: {error}", path.display()));
        stream.set_read_timeout(Some(PATIENCE)).map_err(lost)?;
        stream.set_write_timeout(Some(PATIENCE)).map_err(lost)?;
        Ok(Self { stream: BufReader::new(stream) })
    }

    /// One call, one answer.
    ///
    /// # Errors
    /// [`CallError`].
    pub fn call<T: DeserializeOwned>(
        &mut self,
        method: &str,
        parameters: &impl Serialize,
    ) -> Result<T, CallError> {
        self.send(method, parameters, false)?;
        self.receive().map(|(value, _)| value)
    }

    /// One call, an answer in pieces, each a list under `name`.
    ///
    /// # Errors
    /// [`CallError`].
    pub fn list<T: DeserializeOwned>(
        &mut self,
        method: &str,
        parameters: &impl Serialize,
        name: &str,
    ) -> Result<Vec<T>, CallError> {
        self.send(method, parameters, true)?;
        let mut items = Vec::new();
        loop {
            let (mut piece, continues): (std::collections::HashMap<String, Vec<T>>, bool) = self.receive()?;
            items.append(&mut piece.remove(name).unwrap_or_default());
            if !continues {
                return Ok(items);
            }
        }
    }

    /// One call, an answer in pieces without end: each goes to `take` as it comes, until that says false.
    ///
    /// # Errors
    /// [`CallError`], also when the daemon ends.
    pub fn follow<T: DeserializeOwned>(
        &mut self,
        method: &str,
        parameters: &impl Serialize,
        mut take: impl FnMut(T) -> bool,
    ) -> Result<(), CallError> {
        self.send(method, parameters, true)?;
        self.stream.get_ref().set_read_timeout(None).map_err(lost)?;
        loop {
            let (piece, continues) = self.receive()?;
            if !take(piece) || !continues {
                return Ok(());
            }
        }
    }

    fn send(&mut self, method: &str, parameters: &impl Serialize, more: bool) -> Result<(), CallError> {
        let call = Call { method: format!("{INTERFACE}.{method}"), parameters, more };
        // Keys travel in it: counted first, so that the buffer is allocated once and wiped.
        let mut length = Length(0);
        serde_json::to_writer(&mut length, &call).map_err(lost)?;
        let mut bytes = Zeroizing::new(Vec::with_capacity(length.0 + 1));
        serde_json::to_writer(&mut *bytes, &call).map_err(lost)?;
        bytes.push(0);
        self.stream.get_mut().write_all(&bytes).map_err(lost)
    }

    fn receive<T: DeserializeOwned>(&mut self) -> Result<(T, bool), CallError> {
        let mut bytes = Vec::new();
        self.stream.read_until(0, &mut bytes).map_err(lost)?;
        if bytes.pop() != Some(0) {
            return Err(lost("the connection was closed"));
        }
        let reply: Reply<serde_json::Value> = serde_json::from_slice(&bytes).map_err(lost)?;
        let parameters = reply.parameters.unwrap_or_else(|| serde_json::json!({}));
        match reply.error {
            Some(error) => Err(CallError::Refused(problems(&error, parameters))),
            None => Ok((serde_json::from_value(parameters).map_err(lost)?, reply.continues)),
        }
    }
}

fn lost(error: impl std::fmt::Display) -> CallError {
    CallError::NotRunning(format!("no answer from aditd: {error}; adit status tells whether it runs"))
}

fn problems(error: &str, parameters: serde_json::Value) -> Problems {
    let name = error.strip_prefix(INTERFACE).and_then(|name| name.strip_prefix('.')).unwrap_or(error);
    let message = match name {
        "Refused" => {
            #[derive(Deserialize)]
            struct Refused {
                problems: Vec<Problem>,
            }
            if let Ok(refused) = serde_json::from_value::<Refused>(parameters.clone()) {
                return Problems(refused.problems);
            }
            parameters.to_string()
        }
        "PermissionDenied" => format!("this needs {}", parameters["needs"].as_str().unwrap_or("root")),
        "Busy" => "all connections of aditd are in use; try again".into(),
        "Changed" => "the list changed while it was read; try again".into(),
        _ => parameters.to_string(),
    };
    Problems::one(name, message)
}

struct Length(usize);

impl std::io::Write for Length {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0 += bytes.len();
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
