//! The series protocol of the yardstick: `time,value` on stdin, `time,score,alert,level` on stdout, line by line.

use std::io::{self, BufRead, Write};

use anyhow::Result;
use baseline::Channel;

/// Answers until stdin ends.
pub(crate) fn serve() -> Result<()> {
    let mut channel = Channel::default();
    let mut output = io::stdout().lock();
    for line in io::stdin().lock().lines() {
        let line = line?;
        let Some((time, value)) = line.split_once(',') else { continue };
        let at = time.parse::<u64>().unwrap_or(0).saturating_mul(1000);
        let said = channel.observe(at, value.trim().parse().unwrap_or(0.0));
        writeln!(output, "{time},{},{},{}", said.score, u8::from(said.alert), said.level)?;
        output.flush()?;
    }
    Ok(())
}
