//! One request to an admin socket: HTTP/1.1, one connection each.
//!
//! Promises: a request takes seconds at most and its answer some MiB at most.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use api::certs::Failure;
use serde::de::DeserializeOwned;
use telemetry::Exit;

use crate::output::{self, Format};

const TIMEOUT: Duration = Duration::from_secs(15);
const ANSWER_BYTES_MAX: u64 = 8 << 20;

/// What came of a request.
pub(crate) enum Answer {
    /// The body.
    Done(String),
    /// It cannot be done, or not now: the reason.
    Refused(String),
}

/// Sends one request and shows the answer, as JSON or as `show` lays it out; `No` when it is refused.
///
/// # Errors
/// When nobody answers there, or the answer is not understood.
pub(crate) fn ask<T: DeserializeOwned>(
    socket: &Path,
    (method, path, body): (&str, &str, &str),
    format: Format,
    show: impl FnOnce(&T) -> String,
) -> Result<Exit> {
    match request(socket, method, path, body)? {
        Answer::Refused(reason) => {
            eprintln!("picket: refused: {reason}");
            Ok(Exit::No)
        }
        Answer::Done(json) => {
            output::write(&match format {
                Format::Json => format!("{}\n", json.trim_end()),
                Format::Table => show(&serde_json::from_str(&json).context("the answer is not understood")?),
            })?;
            Ok(Exit::Success)
        }
    }
}

/// Sends one request.
///
/// # Errors
/// When nobody answers there, or what answers failed.
pub(crate) fn request(socket: &Path, method: &str, path: &str, body: &str) -> Result<Answer> {
    let exchange = || {
        let mut stream = UnixStream::connect(socket)?;
        stream.set_read_timeout(Some(TIMEOUT))?;
        stream.set_write_timeout(Some(TIMEOUT))?;
        let length = body.len();
        write!(stream, "{method} {path} HTTP/1.1\r\nhost: admin\r\ncontent-length: {length}\r\n\r\n{body}")?;
        let mut answer = Vec::new();
        stream.take(ANSWER_BYTES_MAX).read_to_end(&mut answer)?;
        std::io::Result::Ok(answer)
    };
    let answer = exchange().with_context(|| format!("nobody answers at {}", socket.display()))?;
    let answer = String::from_utf8(answer).context("the answer is not text")?;
    let (head, body) = answer.split_once("\r\n\r\n").context("the answer is cut")?;
    let status = head.strip_prefix("HTTP/1.1 ").and_then(|rest| rest.get(..3));
    let reason =
        || serde_json::from_str::<Failure>(body).map_or_else(|_| body.trim().to_owned(), |failure| failure.error);
    match status {
        Some("200") => Ok(Answer::Done(body.to_owned())),
        Some("400" | "409") => Ok(Answer::Refused(reason())),
        Some(status) => bail!("it answered {status}: {}", reason()),
        None => bail!("the answer is not HTTP/1.1"),
    }
}
