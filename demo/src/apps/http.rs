//! An HTTP/1.1 service with good, failing and slow answers, and its client.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use anyhow::{Context, Result, bail};

/// Longest head that either side reads, in bytes.
const HEAD_LIMIT: u64 = 64 * 1024;
/// Longest answer that the client reads, in bytes.
const BODY_LIMIT: usize = 1 << 20;

/// What is wrong with the service: nothing, it is slow, or it fails now and then.
static FAULT: AtomicU8 = AtomicU8::new(NO_FAULT);
const NO_FAULT: u8 = 0;
const SLOW: u8 = 1;
const FAILING: u8 = 2;
/// How much longer an answer takes while the service is slow.
const SLOWNESS: Duration = Duration::from_millis(10);

/// The answer to /ok, which suffers from the fault that is on.
fn ok() -> (&'static str, &'static str) {
    static ASKED: AtomicU64 = AtomicU64::new(0);
    match FAULT.load(Relaxed) {
        SLOW => std::thread::sleep(SLOWNESS),
        FAILING if ASKED.fetch_add(1, Relaxed).is_multiple_of(3) => {
            return ("500 Internal Server Error", "this one failed\n");
        }
        _ => {}
    }
    ("200 OK", "all is well\n")
}

fn set_fault(fault: u8) -> (&'static str, &'static str) {
    FAULT.store(fault, Relaxed);
    ("200 OK", "so be it\n")
}

/// Serves /ok, /error and /slow, and /fault/… which sets what is wrong; anything else is 404.
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
            "/ok" => ok(),
            "/fault/none" => set_fault(NO_FAULT),
            "/fault/slow" => set_fault(SLOW),
            "/fault/failing" => set_fault(FAILING),
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

/// One GET; its status.
pub(crate) fn get(to: SocketAddr, path: &str) -> Result<u16> {
    let mut stream = TcpStream::connect(to).with_context(|| format!("cannot connect to {to}"))?;
    write!(stream, "GET {path} HTTP/1.1\r\nhost: orders.demo\r\n\r\n")?;
    read_answer(&mut BufReader::new(stream))
}

/// Asks for /ok over one connection, whatever the answer is.
pub(crate) fn load_steadily(to: SocketAddr, time: Duration, marker: &str) -> Result<super::Sent> {
    let stream = TcpStream::connect(to).with_context(|| format!("cannot connect to {to}"))?;
    stream.set_nodelay(true)?;
    let mut connection = BufReader::new(stream);
    let mut sent = super::Sent { connections: 1, ..super::Sent::default() };
    super::repeat(time, |_| {
        let request = format!("GET /ok HTTP/1.1\r\nhost: orders.demo\r\nx-demo: {marker}\r\n\r\n");
        connection.get_mut().write_all(request.as_bytes())?;
        sent.errors += u64::from(read_answer(&mut connection)? >= 500);
        sent.requests += 1;
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
