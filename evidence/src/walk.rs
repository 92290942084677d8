//! Along the chain of one stream: from each digest that is known to the next one that is signed.
//!
//! What ends in a signed digest is proven, wherever its beginning came from: nobody finds other records that lead to the same
//! digest. So headers and gap records may say where the chain goes on; only what they lead to counts.

use std::collections::BTreeMap;

use identity::SpiffeId;
use spool::{Chain, DISTANCE_MAX, Gap, Reason, Seal, Sink};

use crate::{
    Completeness, Error, Explained, Finding, Integrity, StreamReport,
    gather::{Bare, Seen, Stream},
    spill::Spill,
};

const FINDINGS_MAX: usize = 100;

/// What is said about the digest behind a number.
#[derive(Debug, Clone, Copy)]
enum Claim {
    /// A good checkpoint; with true when another one ends there too, or the stream begins.
    Signed([u8; 32], bool),
    /// The gap record of this number: before the gap, and after it.
    Before(u64, [u8; 32]),
    After(u64, [u8; 32]),
    Hint([u8; 32]),
}

/// What a piece of the chain leads to; whether it is what the records give, if that is known.
#[derive(Debug, Clone, Copy)]
enum End {
    Signed(Option<bool>, bool),
    Gap(u64, Option<bool>),
    Open,
}

#[derive(Debug, Clone, Copy)]
struct Piece {
    first: u64,
    last: u64,
    records: u64,
    /// From here on it is not what the spool itself noted.
    suspect: Option<u64>,
    end: End,
}

#[derive(Debug, Default)]
struct Walk {
    claims: BTreeMap<u64, Vec<Claim>>,
    state: Option<[u8; 32]>,
    pieces: Vec<Piece>,
    first: u64,
    records: u64,
    good_hint: u64,
    suspect: Option<u64>,
}

impl Walk {
    fn claim(&mut self, at: u64, claim: Claim) {
        self.claims.entry(at).or_default().push(claim);
    }

    /// Ends the piece behind the number `at`.
    fn cut(&mut self, at: u64, end: End) {
        let (first, records, suspect) = (self.first, self.records, self.suspect);
        self.pieces.push(Piece { first, last: at, records, suspect, end });
        (self.first, self.records, self.suspect) = (at.saturating_add(1), 0, None);
        self.good_hint = at;
    }

    /// Looks at what is said about all digests before the number `next`.
    fn reach(&mut self, next: u64) {
        while let Some(entry) = self.claims.first_entry()
            && *entry.key() < next
        {
            let (at, claims) = entry.remove_entry();
            for claim in claims {
                self.judge(at, claim);
            }
        }
    }

    fn judge(&mut self, at: u64, claim: Claim) {
        let agrees = |digest: [u8; 32]| self.state.map(|state| state == digest);
        match claim {
            Claim::Signed(digest, follows) => {
                let agrees = agrees(digest);
                self.cut(at, End::Signed(agrees, follows));
                self.state = Some(digest);
            }
            Claim::Before(number, digest) => {
                let agrees = agrees(digest);
                self.cut(at, End::Gap(number, agrees));
                self.state = self.state.or(Some(digest));
            }
            Claim::After(number, digest) => {
                let agrees = agrees(digest);
                if self.records > 0 {
                    self.cut(at, End::Gap(number, agrees));
                } else {
                    (self.first, self.suspect) = (at.saturating_add(1), None);
                }
                self.state = Some(digest);
            }
            Claim::Hint(digest) => match self.state {
                None => self.state = Some(digest),
                Some(state) if state == digest => self.good_hint = at,
                Some(_) => self.suspect = self.suspect.or(Some(self.good_hint.saturating_add(1))),
            },
        }
    }
}

/// Everything about one stream on the way to its report.
struct Judge<'a> {
    stream: Stream,
    spill: &'a Spill,
    integrity: Vec<(Integrity, Finding)>,
    /// Numbers that are there, as stretches.
    there: Vec<(u64, u64)>,
    records: u64,
    duplicates: u64,
}

impl Judge<'_> {
    fn find(&mut self, how: Integrity, first: u64, last: u64, what: impl Into<String>) {
        self.integrity.push((how, Finding { first, last, what: what.into() }));
    }

    /// The checkpoints that count, with their numbers, and whose they are.
    fn checkpoints(&mut self, id: [u8; 16], expected: Option<&SpiffeId>) -> (Vec<(u64, Seal)>, Option<SpiffeId>) {
        let mut all = std::mem::take(&mut self.stream.kept);
        all.append(&mut self.stream.checkpoints);
        let mut identity = expected.cloned();
        let (mut good, mut before) = (Vec::new(), None);
        for (number, seen) in all {
            match check(id, number, before, identity.as_ref(), &seen) {
                Ok((seal, signer)) => {
                    identity = Some(signer);
                    before = Some(seal);
                    good.push((number, seal));
                }
                Err(what) => {
                    self.find(Integrity::Broken, number, number, format!("its checkpoint does not count: {what}"))
                }
            }
        }
        (good, identity)
    }

    /// Takes the records along the chain.
    fn walk(&mut self, good: &[(u64, Seal)]) -> Result<Vec<Piece>, Error> {
        let mut records = std::mem::take(&mut self.stream.records);
        records.sort_by_key(|record| (record.sequence, record.at));
        for record in &records {
            match self.there.last_mut() {
                Some((_, last)) if *last == record.sequence => {}
                Some((_, last)) if *last + 1 == record.sequence => *last = record.sequence,
                _ => self.there.push((record.sequence, record.sequence)),
            }
        }
        let mut walk = self.claims(good);
        let (mut bytes, mut other, mut chain) = (Vec::new(), Vec::new(), Chain::default());
        for at in 0..records.len() {
            let record = records[at];
            self.spill.read(record.at, record.length, &mut bytes).map_err(Error::Spill)?;
            if at > 0 && records[at - 1].sequence == record.sequence {
                self.duplicates += 1;
                self.spill.read(records[at - 1].at, records[at - 1].length, &mut other).map_err(Error::Spill)?;
                if bytes != other {
                    let number = record.sequence;
                    self.find(Integrity::Broken, number, number, "two different records have this number");
                }
                continue;
            }
            walk.reach(record.sequence);
            if let Some(state) = &mut walk.state {
                *state = chain.next(record.rule, state, record.sequence, &bytes);
            }
            walk.records += 1;
            self.records += 1;
        }
        walk.reach(u64::MAX);
        walk.cut(u64::MAX, End::Open);
        Ok(walk.pieces)
    }

    fn claims(&self, good: &[(u64, Seal)]) -> Walk {
        let mut walk = Walk { first: 1, ..Walk::default() };
        let ends: std::collections::BTreeSet<u64> = good.iter().map(|(_, seal)| seal.last).collect();
        for (_, seal) in good {
            let follows = seal.first == 1 || ends.contains(&(seal.first - 1));
            walk.claim(seal.first - 1, Claim::Signed(seal.before, follows));
            walk.claim(seal.last, Claim::Signed(seal.digest, true));
        }
        // Where all of them are there, another sink lacks them: the chain is followed along the records.
        for (number, gap) in self.stream.gaps.iter().filter(|(_, gap)| !self.holds_all(gap.first, gap.last)) {
            if let Some(digest) = gap.before {
                walk.claim(gap.first.saturating_sub(1), Claim::Before(*number, digest));
            }
            if let Some(digest) = gap.after {
                walk.claim(gap.last, Claim::After(*number, digest));
            }
        }
        for (at, digest) in &self.stream.hints {
            walk.claim(*at, Claim::Hint(*digest));
        }
        walk.claim(0, Claim::Hint([0; 32]));
        walk
    }

    /// All of these numbers are there.
    fn holds_all(&self, first: u64, last: u64) -> bool {
        let at = self.there.partition_point(|(_, to)| *to < first);
        self.there.get(at).is_some_and(|(from, to)| *from <= first && last <= *to)
    }

    /// Whether a gap is one of what was read: of a spool each is, of what a sink got those that it lacks itself.
    fn is_ours(&self, gap: &Gap) -> bool {
        gap.sink.is_none_or(|sink| self.stream.sinks.iter().all(|read| *read == sink))
    }

    /// Which numbers are missing between these two.
    fn missing(&self, first: u64, last: u64) -> Vec<(u64, u64)> {
        let (mut missing, mut next) = (Vec::new(), first);
        for &(from, to) in self.there.iter().filter(|(_, to)| *to >= first) {
            if from > last {
                break;
            }
            if from > next {
                missing.push((next, from - 1));
            }
            next = to.saturating_add(1);
        }
        if next <= last {
            missing.push((next, last));
        }
        missing
    }

    /// Which pieces are proven, and what is wrong with the others; from the end, as gaps are reported after they happened.
    fn prove(&mut self, pieces: &[Piece], sealed: u64) -> Vec<(u64, u64)> {
        let mut proven: Vec<(u64, u64)> = Vec::new();
        for piece in pieces.iter().rev().filter(|piece| piece.records > 0) {
            let holds = |number: &u64| proven.iter().any(|(first, last)| (first..=last).contains(&number));
            let verdict = match piece.end {
                End::Signed(agrees, _) => agrees,
                End::Gap(number, agrees) if holds(&number) => agrees,
                End::Gap(..) => None,
                End::Open => continue,
            };
            if verdict == Some(true) {
                proven.push((piece.first, piece.last));
                continue;
            }
            if piece.first > sealed {
                continue;
            }
            let never = |gap: &Gap| {
                let reason = gap.reason;
                gap.sink.is_none()
                    && matches!(
                        reason,
                        Reason::QueueFull | Reason::WriteFailed | Reason::SyncFailed | Reason::Malformed
                    )
            };
            let gaps: Vec<_> = self.stream.gaps.iter().filter(|(number, gap)| holds(number) && never(gap)).collect();
            let missing = self.missing(piece.first, piece.last);
            let hole =
                missing.iter().find(|(from, to)| !gaps.iter().any(|(_, gap)| gap.first <= *from && gap.last >= *to));
            let first = piece.suspect.unwrap_or(piece.first);
            let follows = !matches!(piece.end, End::Signed(_, false));
            match (verdict, hole) {
                (Some(false), None) if follows => self.find(
                    Integrity::Broken,
                    first,
                    piece.last,
                    "the records are not what was written: the chain does not lead to the digest that was signed",
                ),
                (_, Some((missing, _))) => self.find(
                    Integrity::Unproven,
                    piece.first,
                    piece.last,
                    format!("cannot be proven, as {missing} is missing in between"),
                ),
                _ => self.find(
                    Integrity::Unproven,
                    piece.first,
                    piece.last,
                    "cannot be proven: the chain is not known here",
                ),
            }
        }
        proven
    }

    /// What is missing without a word, and what the mesh reported.
    fn complete(&self, first: u64, last: u64, proven: &[(u64, u64)]) -> (Vec<Finding>, Vec<Explained>) {
        let holds = |number: u64| proven.iter().any(|(from, to)| (*from..=*to).contains(&number));
        let (mut findings, mut explained) = (Vec::new(), BTreeMap::new());
        let ours = self.stream.gaps.iter().filter(|(_, gap)| self.is_ours(gap));
        let mut gaps: Vec<_> = ours.map(|(number, gap)| (gap, holds(*number))).collect();
        gaps.sort_by_key(|(gap, sealed)| (gap.first, !sealed));
        for (from, to) in self.missing(first, last) {
            let mut next = from;
            for (gap, _) in gaps.iter().filter(|(gap, sealed)| *sealed && gap.last >= from && gap.first <= to) {
                explained.insert((gap.first, gap.last, gap.sink.map(Sink::as_str)), *gap);
                if gap.first > next {
                    findings.push(missing(next, gap.first - 1, &gaps));
                }
                next = next.max(gap.last.saturating_add(1));
            }
            if next <= to {
                findings.push(missing(next, to, &gaps));
            }
        }
        // Of a request that was taken in part only so many are missing as its answer said.
        for gap in explained.values().filter(|gap| gap.reason == Reason::PartlyRefused) {
            let missing = self.missing(gap.first, gap.last).iter().map(|(from, to)| to - from + 1).sum::<u64>();
            if missing > gap.records {
                let what = format!("{missing} are missing here, and the gap record knows of {}", gap.records);
                findings.push(Finding { first: gap.first, last: gap.last, what });
            }
        }
        let explained = explained.into_values().map(|gap| Explained {
            first: gap.first,
            last: gap.last,
            records: gap.records,
            reason: gap.reason.as_str(),
            sink: gap.sink.map(Sink::as_str),
        });
        (findings, explained.collect())
    }
}

fn missing(first: u64, last: u64, gaps: &[(&Gap, bool)]) -> Finding {
    let unsealed = gaps.iter().any(|(gap, sealed)| !sealed && gap.first <= first && gap.last >= last);
    let what = if unsealed { "missing; a gap record says so, but no checkpoint seals that yet" } else { "missing" };
    Finding { first, last, what: what.to_owned() }
}

/// Whether a checkpoint counts: its seal, and who signed.
fn check(
    id: [u8; 16],
    number: u64,
    before: Option<Seal>,
    expected: Option<&SpiffeId>,
    seen: &Seen,
) -> Result<(Seal, SpiffeId), String> {
    let signer = seen.identity.clone()?;
    let seal = seen.seal.ok_or("it cannot be read")?;
    if seal.stream != id {
        return Err(format!("it seals the stream {}", hex(&seal.stream)));
    }
    if let Some(expected) = expected.filter(|expected| **expected != signer) {
        return Err(format!("it is signed by {signer}, not by {expected}"));
    }
    if seal.first == 0 || seal.first > seal.last {
        return Err("it seals nothing".to_owned());
    }
    let (last, digest) = before.map_or((0, [0; 32]), |before| (before.last, before.digest));
    if seal.first == last + 1 && seal.before != digest {
        return Err("it does not go on where the one before it ends".to_owned());
    }
    if seal.last <= last || seal.last >= number || number - seal.last > DISTANCE_MAX {
        return Err(format!("it seals up to {}, and stands in the wrong place: an old one was put there", seal.last));
    }
    Ok((seal, signer))
}

/// The report about one stream.
pub(crate) fn judge(
    id: [u8; 16],
    stream: Stream,
    spill: &Spill,
    expected: Option<&SpiffeId>,
) -> Result<StreamReport, Error> {
    let mut judge = Judge { stream, spill, integrity: Vec::new(), there: Vec::new(), records: 0, duplicates: 0 };
    for finding in std::mem::take(&mut judge.stream.damage) {
        judge.integrity.push((Integrity::Broken, finding));
    }
    let (good, identity) = judge.checkpoints(id, expected);
    let pieces = judge.walk(&good)?;
    let sealed = good.last().map_or(0, |(_, seal)| seal.last);
    let proven = judge.prove(&pieces, sealed);
    let present = judge.there.last().map_or(0, |(_, last)| *last);
    let bare = std::mem::take(&mut judge.stream.bare);
    let last = present.max(good.last().map_or(0, |(number, _)| *number));
    let last = bare.values().fold(last, |last, bare| last.max(bare.last));
    let begins = judge.stream.begins.filter(|_| judge.stream.sinks.is_empty()).unwrap_or(1);
    for (why, Bare { messages, first, last }) in bare {
        judge.find(Integrity::Unproven, first, last, format!("{messages} messages carry no evidence: {why}"));
    }
    if let Some(identity) = &identity {
        for (own, number) in std::mem::take(&mut judge.stream.own) {
            if own != identity.as_str() {
                judge.find(
                    Integrity::Broken,
                    number,
                    number,
                    format!("the record is of {own}, the stream of {identity}"),
                );
            }
        }
    }
    if good.is_empty() {
        judge.find(Integrity::Unproven, begins, last, "no checkpoint seals it");
    }
    let (completeness, explained) = judge.complete(begins, last, &proven);
    // A good checkpoint proves itself.
    let own = good.iter().filter(|(number, _)| *number > sealed && judge.missing(*number, *number).is_empty()).count();
    let behind = judge.there.iter().map(|(from, to)| (to + 1).saturating_sub((*from).max(sealed + 1))).sum::<u64>();
    judge.integrity.sort_by_key(|(_, finding)| (finding.first, finding.last));
    judge.integrity.truncate(FINDINGS_MAX);
    let verdict = judge.integrity.iter().map(|(how, _)| *how);
    let broken = verdict.clone().any(|how| how == Integrity::Broken);
    let integrity = match (broken, judge.integrity.is_empty()) {
        (true, _) => Integrity::Broken,
        (false, true) => Integrity::Intact,
        (false, false) => Integrity::Unproven,
    };
    Ok(StreamReport {
        stream: hex(&id),
        identity: identity.filter(|_| !good.is_empty()).map(|identity| identity.to_string()),
        records: judge.records,
        duplicates: judge.duplicates,
        first: begins,
        last,
        checkpoints: good.len() as u64,
        sealed,
        unsealed: behind - own as u64,
        integrity,
        integrity_findings: judge.integrity.into_iter().map(|(_, finding)| finding).collect(),
        completeness: if completeness.is_empty() { Completeness::Complete } else { Completeness::Incomplete },
        completeness_findings: completeness.into_iter().take(FINDINGS_MAX).collect(),
        explained,
    })
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
