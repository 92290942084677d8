//! Commands over plain TCP as Redis takes them inline (`ECHO text`), and a server for machines without Redis.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

const LINE_LIMIT: u64 = 4096;
/// Commands per connection.
const COMMANDS: u64 = 10;

/// Answers `ECHO text` as Redis does.
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
    while let Some(line) = read_line(&mut reader)? {
        let answer = match line.strip_prefix("ECHO ") {
            Some(text) => format!("${}\r\n{text}\r\n", text.len()),
            None => "-ERR only ECHO is known\r\n".to_owned(),
        };
        stream.write_all(answer.as_bytes())?;
    }
    Ok(())
}

/// Opens a connection per round, and sends some commands over it.
pub(crate) fn load(to: SocketAddr, time: Duration, marker: &str) -> Result<super::Sent> {
    let mut sent = super::Sent::default();
    super::repeat(time, |_| {
        let stream = TcpStream::connect(to).with_context(|| format!("cannot connect to {to}"))?;
        stream.set_nodelay(true)?;
        sent.connections += 1;
        let mut reader = BufReader::new(stream);
        for _ in 0..COMMANDS {
            reader.get_mut().write_all(format!("ECHO {marker}\r\n").as_bytes())?;
            let length = read_line(&mut reader)?;
            let echo = read_line(&mut reader)?;
            ensure!(echo.as_deref() == Some(marker), "answered {length:?} {echo:?}");
            sent.requests += 1;
        }
        Ok(())
    })?;
    Ok(sent)
}

/// One line without its end; `None` at the end of the connection.
fn read_line(reader: &mut BufReader<TcpStream>) -> Result<Option<String>> {
    let mut line = String::new();
    reader.take(LINE_LIMIT).read_line(&mut line)?;
    Ok(line.ends_with('\n').then(|| line.trim_end().to_owned()))
}
