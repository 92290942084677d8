//! An HTTP/1.1 service with good, failing and slow answers, and its client.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, bail};

/// Longest head that either side reads, in bytes.
const HEAD_LIMIT: u64 = 64 * 1024;
/// Longest answer that the client reads, in bytes.
const BODY_LIMIT: usize = 1 << 20;

/// Serves /ok, /error and /slow; anything else is 404.
pub(crate) fn serve(listen: SocketAddr) -> Result<()> {
    let listener = TcpListener::bind(listen).with_context(|| format!("cannot listen on {listen}"))?;
    for stream in listener.incoming() {
        let stream = stream?;
        // A connection that fails is the client's affair.
        std::thread::spawn(move || answer(stream));
    }
    Ok(())
}

fn answer(mut stream: TcpStream) -> Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    while let Some(head) = read_head(&mut reader)? {
        let path = head.first().and_then(|line| line.split(' ').nth(1)).unwrap_or_default();
        let (status, body) = match path {
            "/ok" => ("200 OK", "all is well\n"),
            "/error" => ("500 Internal Server Error", "as you asked\n"),
            "/slow" => {
                std::thread::sleep(Duration::from_millis(25));
                ("200 OK", "at last\n")
            }
            _ => ("404 Not Found", "no such path\n"),
        };
        let length = body.len();
        let head = format!("HTTP/1.1 {status}\r\ncontent-type: text/plain\r\ncontent-length: {length}\r\n\r\n");
        stream.write_all((head + body).as_bytes())?;
    }
    Ok(())
}

/// Sends GET requests over kept connections, a fresh one after every 50 requests.
pub(crate) fn load(to: SocketAddr, time: Duration, marker: &str) -> Result<super::Sent> {
    let mut sent = super::Sent::default();
    let mut connection = None;
    super::repeat(time, |number| {
        if number % 50 == 0 || connection.is_none() {
            let stream = TcpStream::connect(to).with_context(|| format!("cannot connect to {to}"))?;
            stream.set_nodelay(true)?;
            connection = Some(BufReader::new(stream));
            sent.connections += 1;
        }
        let path = match number % 20 {
            7 => "/error",
            13 => "/slow",
            _ => "/ok",
        };
        let reader = connection.as_mut().context("a connection was made above")?;
        let host = "web.demo";
        let request = format!("GET {path} HTTP/1.1\r\nhost: {host}\r\nx-demo: {marker}\r\n\r\n");
        reader.get_mut().write_all(request.as_bytes())?;
        let status = read_answer(reader)?;
        sent.requests += 1;
        match (path, status) {
            ("/error", 500) => sent.errors += 1,
            (_, 200) => {}
            (path, status) => bail!("{path} was answered with {status}"),
        }
        Ok(())
    })?;
    Ok(sent)
}

fn read_answer(reader: &mut BufReader<TcpStream>) -> Result<u16> {
    let head = read_head(reader)?.context("the connection ended before an answer")?;
    let status = head[0].split(' ').nth(1).and_then(|status| status.parse().ok()).context("an answer has a status")?;
    let length: usize = head
        .iter()
        .filter_map(|line| line.split_once(':'))
        .find(|(name, _)| name.eq_ignore_ascii_case("content-length"))
        .and_then(|(_, value)| value.trim().parse().ok())
        .context("an answer has a length")?;
    if length > BODY_LIMIT {
        bail!("an answer of {length} bytes is too long");
    }
    reader.read_exact(&mut vec![0; length])?;
    Ok(status)
}

/// The lines of one head; `None` at the end of the connection.
fn read_head(reader: &mut BufReader<TcpStream>) -> Result<Option<Vec<String>>> {
    let mut lines = Vec::new();
    let mut limited = reader.take(HEAD_LIMIT);
    loop {
        let mut line = String::new();
        if limited.read_line(&mut line)? == 0 {
            return if lines.is_empty() { Ok(None) } else { bail!("a head was cut") };
        }
        match line.trim_end() {
            "" if lines.is_empty() => {}
            "" => return Ok(Some(lines)),
            text => lines.push(text.to_owned()),
        }
    }
}
