//! Baselines with any damage, also with a checksum that was made right again: they are read or refused, and what was read
//! works and is written again as it was.

#![no_main]

use baseline::{Engine, Limits, State};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    check(bytes);
    let mut repaired = b"PKBL\x02\x00".to_vec();
    repaired.extend_from_slice(&crc32c::crc32c(bytes).to_le_bytes());
    repaired.extend_from_slice(bytes);
    check(&repaired);
});

fn check(bytes: &[u8]) {
    let Ok(mut state) = State::decode(bytes) else { return };
    let again = State::decode(&state.encode()).expect("what was written is read");
    assert!(state.diff(&again).is_empty());
    let mut engine = Engine::from_state(Limits::default(), 0, &state);
    engine.advance(60_000);
    let _ = engine.state().encode();
    state.merge(&again);
    let _ = state.encode();
}
