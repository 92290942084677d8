//! From samples to tables: medians over the rounds, ratios within a round, and the verdict on each goal.

use std::fmt::Write as _;

use crate::{load::Load, measure::Sample, stage::Variant};

/// What a load must not cost more than.
#[derive(Clone, Copy, Debug)]
struct Goal {
    load: Load,
    peer: Variant,
    ratio_max: f64,
}

/// The goals for CPU time for each request, Picket with access log and export against the peer with its log.
const GOALS: [Goal; 5] = [
    Goal { load: Load::Http1, peer: Variant::Nginx, ratio_max: 1.0 },
    Goal { load: Load::Http1, peer: Variant::Envoy, ratio_max: 0.4 },
    Goal { load: Load::ConnectionPerRequest, peer: Variant::Nginx, ratio_max: 1.0 },
    Goal { load: Load::Http2, peer: Variant::Envoy, ratio_max: 0.5 },
    Goal { load: Load::Bulk, peer: Variant::Envoy, ratio_max: 1.1 },
];
/// Whom ratios are shown to.
const PEERS: [(Variant, &str); 4] = [
    (Variant::Nginx, "× nginx"),
    (Variant::NginxBuffered, "× nginx buffered"),
    (Variant::Envoy, "× Envoy"),
    (Variant::PicketBaseline, "× baseline"),
];
/// Resident memory of one idle proxy, in MiB.
const IDLE_MIB_MAX: f64 = 10.0;

/// All rounds of one load: for each round, a sample of each variant.
#[derive(Debug)]
pub(crate) struct Rounds {
    pub(crate) load: Load,
    /// Bytes that one request of this load brings, where that is the point.
    pub(crate) bytes: Option<u64>,
    pub(crate) rounds: Vec<Vec<(Variant, Sample)>>,
}

/// Memory of a pair.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Memory {
    pub(crate) variant: Variant,
    /// Each proxy before its first request, in bytes.
    pub(crate) fresh: [u64; 2],
    /// Each proxy before the idle connections, in bytes.
    pub(crate) before: [u64; 2],
    /// With them.
    pub(crate) with: [u64; 2],
    pub(crate) connections: u64,
}

/// A claim and whether it holds.
#[derive(Clone, Debug)]
pub(crate) struct Verdict {
    pub(crate) holds: bool,
    pub(crate) claim: String,
}

impl Rounds {
    fn values(&self, variant: Variant, value: impl Fn(&Sample) -> Option<f64>) -> Option<f64> {
        let found = self.rounds.iter().flatten().filter(|(of, _)| *of == variant);
        median(found.filter_map(|(_, sample)| value(sample)).collect())
    }

    /// The median over the rounds of the ratio within each round.
    fn ratio(&self, variant: Variant, peer: Variant) -> Option<f64> {
        let of = |round: &[(Variant, Sample)], wanted| {
            round.iter().find(|(variant, _)| *variant == wanted).map(|(_, sample)| sample.cpu_per_request())
        };
        let ratios = self.rounds.iter().filter_map(|round| Some(of(round, variant)? / of(round, peer)?));
        median(ratios.collect())
    }

    /// One table, with a column of ratios for each peer that was there.
    pub(crate) fn table(&self) -> String {
        let measured = |variant: &Variant| self.values(*variant, |sample| Some(sample.rate())).is_some();
        let peers: Vec<(Variant, &str)> = PEERS.into_iter().filter(|(peer, _)| measured(peer)).collect();
        let mut columns = match self.bytes {
            Some(_) => vec!["MiB/s", "CPU ms/GiB", "of it user", "spread"],
            None => vec!["requests/s", "CPU µs/request", "of it user", "spread"],
        };
        if self.bytes.is_none() {
            columns.extend(["p50 µs", "p99 µs", "added p50", "added p99"]);
        }
        columns.extend(peers.iter().map(|(_, title)| *title));
        let mut out = format!(
            "### {}\n\n| | {} |\n|---|{}\n",
            self.load.title(),
            columns.join(" | "),
            "--:|".repeat(columns.len())
        );
        for variant in Variant::ALL.into_iter().filter(measured) {
            let _ = writeln!(out, "| {} | {} |", variant.title(), self.row(variant, &peers).join(" | "));
        }
        out
    }

    fn row(&self, variant: Variant, peers: &[(Variant, &str)]) -> Vec<String> {
        let is_pair = variant != Variant::Direct;
        let (rate_unit, cpu_unit) = match self.bytes {
            Some(bytes) => (bytes as f64 / f64::from(1 << 20), (1u64 << 30) as f64 / bytes as f64 / 1000.0),
            None => (1.0, 1.0),
        };
        let of_pair = |value: Option<f64>, digits| shown(value.filter(|_| is_pair), digits);
        let cpu = |value: fn(&Sample) -> f64| self.values(variant, |sample| Some(value(sample) * cpu_unit));
        let mut row = vec![
            shown(self.values(variant, |sample| Some(sample.rate() * rate_unit)), 0),
            of_pair(cpu(Sample::cpu_per_request), 1),
            of_pair(cpu(Sample::user_per_request), 1),
            self.spread(variant, cpu_unit).filter(|_| is_pair).unwrap_or_else(|| "-".to_owned()),
        ];
        if self.bytes.is_none() {
            let latencies: [fn(&Sample) -> Option<f64>; 2] = [|sample| sample.done.p50, |sample| sample.done.p99];
            let own = latencies.map(|value| self.values(variant, value));
            let direct = latencies.map(|value| self.values(Variant::Direct, value));
            row.extend(own.map(|own| shown(own, 0)));
            row.extend([0, 1].map(|at| of_pair(own[at].zip(direct[at]).map(|(own, direct)| own - direct), 0)));
        }
        let ratio = |peer: Variant| self.ratio(variant, peer).filter(|_| variant != peer);
        row.extend(peers.iter().map(|(peer, _)| of_pair(ratio(*peer), 2)));
        row
    }

    /// Least and most of the rounds.
    fn spread(&self, variant: Variant, unit: f64) -> Option<String> {
        let found = self.rounds.iter().flatten().filter(|(of, _)| *of == variant);
        let mut values: Vec<f64> = found.map(|(_, sample)| sample.cpu_per_request() * unit).collect();
        values.sort_by(f64::total_cmp);
        Some(format!("{:.1}–{:.1}", values.first()?, values.last()?))
    }

    /// The goals that this load can decide.
    pub(crate) fn verdicts(&self) -> Vec<Verdict> {
        let goals = GOALS.iter().filter(|goal| goal.load == self.load);
        let verdict = |goal: &Goal| {
            let ratio = self.ratio(Variant::Picket, goal.peer)?;
            let (load, peer) = (goal.load.title(), goal.peer.title());
            Some(Verdict {
                holds: ratio <= goal.ratio_max,
                claim: format!("{load}: CPU {ratio:.2} × {peer}, at most {:.2}", goal.ratio_max),
            })
        };
        goals.filter_map(verdict).collect()
    }
}

/// The table of memory, in MiB and KiB.
pub(crate) fn memory_table(memory: &[Memory]) -> String {
    let mut out = String::from(
        "### Memory\n\n| | fresh, client + server MiB | after the loads, client + server MiB | KiB per idle connection, client + server |\n|---|--:|--:|--:|\n",
    );
    let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    for memory in memory {
        let each = |at: usize| {
            (memory.with[at] as f64 - memory.before[at] as f64).max(0.0) / memory.connections as f64 / 1024.0
        };
        let _ = writeln!(
            out,
            "| {} | {:.1} + {:.1} | {:.1} + {:.1} | {:.1} + {:.1} |",
            memory.variant.title(),
            mib(memory.fresh[0]),
            mib(memory.fresh[1]),
            mib(memory.before[0]),
            mib(memory.before[1]),
            each(0),
            each(1),
        );
    }
    out
}

/// Whether an idle Picket is as small as it should be.
pub(crate) fn memory_verdict(memory: &[Memory]) -> Option<Verdict> {
    let picket = memory.iter().find(|memory| memory.variant == Variant::Picket)?;
    let most = picket.fresh[0].max(picket.fresh[1]) as f64 / f64::from(1 << 20);
    Some(Verdict {
        holds: most <= IDLE_MIB_MAX,
        claim: format!("idle: {most:.1} MiB resident, at most {IDLE_MIB_MAX:.0} MiB"),
    })
}

fn shown(value: Option<f64>, digits: usize) -> String {
    value.map_or_else(|| "-".to_owned(), |value| format!("{value:.digits$}"))
}

fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let upper = values.get(values.len() / 2)?;
    let lower = values.get((values.len() - 1) / 2)?;
    Some((lower + upper) / 2.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{load::Done, usage::Cpu};

    fn sample(user: u64) -> Sample {
        Sample { done: Done { requests: 100, seconds: 1.0, ..Done::default() }, cpu: Cpu { user, system: 0 } }
    }

    fn rounds(picket_and_nginx: &[(u64, u64)]) -> Rounds {
        let round =
            |(picket, nginx): &(u64, u64)| vec![(Variant::Picket, sample(*picket)), (Variant::Nginx, sample(*nginx))];
        Rounds { load: Load::Http1, bytes: None, rounds: picket_and_nginx.iter().map(round).collect() }
    }

    #[test]
    fn medians_take_the_middle() {
        assert_eq!(median(vec![3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(vec![1.0, 2.0, 4.0, 9.0]), Some(3.0));
        assert_eq!(median(Vec::new()), None);
    }

    #[test]
    fn ratios_are_those_within_a_round() {
        // The machine became slower and slower: within each round Picket took half.
        let rounds = rounds(&[(100, 200), (500, 1000), (900, 1800)]);
        assert_eq!(rounds.ratio(Variant::Picket, Variant::Nginx), Some(0.5));
        assert_eq!(rounds.ratio(Variant::Picket, Variant::Envoy), None);
    }

    #[test]
    fn a_table_has_the_peers_that_were_there() {
        let table = rounds(&[(100, 200)]).table();
        let lines: Vec<&str> = table.lines().collect();
        assert!(lines[2].ends_with("| added p99 | × nginx |"), "{table}");
        assert_eq!(lines[4], "| nginx pair, log | 100 | 2.0 | 2.0 | 2.0–2.0 | - | - | - | - | - |");
        assert_eq!(lines[5], "| Picket pair, log and OTLP | 100 | 1.0 | 1.0 | 1.0–1.0 | - | - | - | - | 0.50 |");
        assert!(lines.iter().skip(2).all(|line| line.matches('|').count() == lines[2].matches('|').count()), "{table}");
    }

    #[test]
    fn a_goal_is_missed_above_its_ratio() {
        let holds = |rounds: Rounds| rounds.verdicts().iter().map(|verdict| verdict.holds).collect::<Vec<_>>();
        assert_eq!(holds(rounds(&[(100, 100)])), [true]);
        assert_eq!(holds(rounds(&[(101, 100)])), [false]);
    }
}
