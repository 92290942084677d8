//! Every constant of the engine: one set for all edges and pods.
//!
//! A limit is either bought from the false-alarm budget or is a stated tolerance: something that happens to healthy
//! workloads and that nobody wants to read about. Bounds can be set per engine ([`Limits`]); the statistics cannot.

/// Bounds and times that an operator may set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Edges at most. At the bound the least recently used edge goes, those that are still being learnt first.
    pub edges: usize,
    /// Deviations that may be open at a time; what would open beyond is counted.
    pub open: usize,
    /// Events that wait to be taken; what comes beyond is counted.
    pub events: usize,
    /// A new pod or edge is only watched until then, in milliseconds.
    pub learn_ms: u64,
    /// What lasts that long becomes normal, unless the edge is pinned; in milliseconds of time in which somebody asks.
    pub adopt_ms: u64,
    /// A peer that was there and is silent for so long has vanished; in milliseconds.
    pub vanish_ms: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            edges: 1024,
            open: 64,
            events: 1024,
            learn_ms: 30 * 60_000,
            adopt_ms: 3 * 3_600_000,
            vanish_ms: 24 * 3_600_000,
        }
    }
}

/// Length of a block: tests run when a block ends. Milliseconds, and seconds.
pub(crate) const BLOCK_MS: u64 = 5000;
/// The same in seconds.
pub(crate) const BLOCK_S: f32 = 5.0;
/// Blocks in a minute: the reference learns by the minute.
pub(crate) const MINUTE_BLOCKS: u32 = 12;
/// A step of the clock that is longer is a pause or a set clock: nothing is concluded from the silence in it.
pub(crate) const JUMP_MS: u64 = 120_000;

/// Logarithm of the mean time between false alarms of one chart, in units of its own correlation time.
///
/// The budget is two false alarms a week for a workload with about ten edges of eight charts each: one per chart in forty
/// weeks, 2.4e7 s. A chart of drift `k` and variance `v` per second renews itself every `v / 2k²` s, some 20 s at least,
/// so about 1.2e6 renewals: 14 nats. Two are added, since limits are set with estimated variances.
pub(crate) const BUDGET: f32 = 16.0;
/// The same budget as a time: one false alarm per chart in forty weeks, in seconds. A chart whose renewals can be counted takes
/// its limit from it: the logarithm of how many there are in that time.
pub(crate) const BUDGET_S: f32 = 2.4e7;
