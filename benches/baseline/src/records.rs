//! The record protocol of the yardstick: records and ticks on stdin, alerts on stdout.
//!
//! Each line is `time,src,dst,protocol,status,latency_us,bytes_in,bytes_out` or `tick,TIME`, after `#workload,NAME`.

use std::io::{self, BufRead, Write};

use anyhow::Result;
use baseline::{Direction, EdgeRef, Engine, Event, Kind, Limits, Observation, Protection, Protocol};

/// Streams begin at 0; an engine's time is that of a wall clock, here at a midnight.
const EPOCH_MS: u64 = 1_700_006_400_000;

/// Answers until stdin ends.
pub(crate) fn serve() -> Result<()> {
    let mut engine = Engine::new(Limits::default(), EPOCH_MS);
    let mut workload = String::new();
    let (mut input, mut output) = (io::stdin().lock(), io::stdout().lock());
    let mut line = String::new();
    while input.read_line(&mut line)? > 0 {
        let text = line.trim_end();
        if let Some(name) = text.strip_prefix("#workload,") {
            name.clone_into(&mut workload);
        } else if let Some(seconds) = text.strip_prefix("tick,") {
            engine.advance(EPOCH_MS + millis(seconds));
            for event in engine.drain_events() {
                if let Event::Opened(deviation) | Event::Updated(deviation) = event {
                    report(&mut output, &workload, &deviation)?;
                }
            }
            writeln!(output, "ok")?;
            output.flush()?;
        } else {
            observe(&mut engine, &workload, text);
        }
        line.clear();
    }
    Ok(())
}

fn millis(seconds: &str) -> u64 {
    (seconds.parse::<f64>().unwrap_or(0.0) * 1000.0) as u64
}

fn observe(engine: &mut Engine, workload: &str, text: &str) {
    let fields: Vec<&str> = text.split(',').collect();
    let [at, src, dst, protocol, status, latency, bytes_in, bytes_out] = fields[..] else { return };
    let (direction, peer) = if src == workload { (Direction::Outbound, dst) } else { (Direction::Inbound, src) };
    let protocol = match protocol {
        "http" => Protocol::Http,
        "grpc" => Protocol::Grpc,
        "tcp" => Protocol::Tcp,
        _ => Protocol::Udp,
    };
    let status: u32 = status.parse().unwrap_or(0);
    let number = |text: &str| text.parse().unwrap_or(0);
    engine.observe(&Observation {
        at: EPOCH_MS + millis(at),
        edge: EdgeRef { direction, peer, service: "", port: 0, protocol },
        source: None,
        error: if protocol == Protocol::Http { status >= 500 } else { status != 0 },
        duration_us: Some(number(latency)),
        first_byte_us: None,
        bytes_in: number(bytes_in),
        bytes_out: number(bytes_out),
        protection: Protection::Unknown,
    });
}

fn report(output: &mut impl Write, workload: &str, deviation: &baseline::Deviation) -> Result<()> {
    let kind = match deviation.kind {
        Kind::Latency | Kind::LatencyTail | Kind::FirstByte => "latency",
        Kind::Errors => "errors",
        Kind::RateUp | Kind::RateDown => "rate",
        Kind::Silence | Kind::VanishedPeer => "silence",
        Kind::BytesIn | Kind::BytesOut => "volume",
        Kind::NewPeer => "new_peer",
        Kind::Plaintext | Kind::Cpu | Kind::Memory => return Ok(()),
    };
    // It says of each edge that it names that it is so.
    for edge in deviation.edge.iter().chain(&deviation.others) {
        let (src, dst) = match edge.direction {
            Direction::Inbound => (edge.peer.as_str(), workload),
            Direction::Outbound => (workload, edge.peer.as_str()),
        };
        writeln!(output, "alert,{src},{dst},{kind},{:.3}", deviation.score)?;
    }
    Ok(())
}
