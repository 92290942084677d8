//! Writes the reference page that is made from the metric catalogue: `cargo run -p proxy --example reference`.

fn main() -> std::io::Result<()> {
    let page = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/reference/metrics.md");
    let text = "# Metrics of picket-proxy\n\nAt `/metrics` on the admin port, in Prometheus text. Made from `proxy/src/metrics.rs`.\n\n";
    std::fs::write(page, format!("{text}{}", telemetry::metrics::table(proxy::metrics::CATALOGUE)))
}
