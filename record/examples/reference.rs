//! Writes the reference pages that are made from this crate: `cargo run -p record --example reference`.

fn main() -> std::io::Result<()> {
    let reference = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/reference");
    let codes = "# Codes\n\nHow a connection or a request ended: in its record (`picket.code`), in the `picket-error` header of answers that\nPicket gives itself, and in the counters. Made from `record/src/code.rs`.\n\n";
    std::fs::write(reference.join("codes.md"), format!("{codes}{}", record::Code::table()))?;
    let records = "# Records\n\nAttributes of the OTLP log records `picket.connection` and `picket.request`. Durations are seconds. Made from\n`record/src/key.rs`.\n\n";
    std::fs::write(reference.join("records.md"), format!("{records}{}", record::key::table()))?;
    let events = "# Events\n\nAttributes of the OTLP log records `picket.issuance` (each certificate that was issued or refused), `picket.alert`\n(operational trouble, once when it begins and once when it ends), `picket.gap` (records that were lost),\n`picket.checkpoint` (a sealed stretch of the chain), `picket.deviation` (something left its baseline, more peers did so, and once when it came\nback) and `picket.rollout` (how a template differs from the one before). Made from `record/src/key.rs`.\n\n";
    std::fs::write(reference.join("events.md"), format!("{events}{}", record::key::events_table()))
}
