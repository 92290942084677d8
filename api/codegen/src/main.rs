//! Makes `api/src/generated` out of `api/proto`; with `--check` it only compares and fails when they differ.
//!
//! Promises: needs no `protoc`, and the same contracts always give the same bytes. The generated code is committed, so
//! nobody but the person who changes a contract has to build the compiler behind this.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};

/// The contract files, and the file that prost makes of each package.
const CONTRACTS: [&str; 2] = ["istio_ca.proto", "picket_trust.proto"];
const GENERATED: [&str; 2] = ["istio.v1.auth.rs", "picket.trust.v1.rs"];

fn main() -> Result<()> {
    let api = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("this crate lives in api/codegen")?;
    let check = match std::env::args().nth(1).as_deref() {
        None => false,
        Some("--check") => true,
        Some(other) => bail!("unknown argument {other:?}; expected nothing or --check"),
    };
    let scratch = std::env::temp_dir().join(format!("picket-codegen-{}", std::process::id()));
    fs::create_dir_all(&scratch).with_context(|| format!("cannot make {}", scratch.display()))?;
    let outcome = generate(api, &scratch).and_then(|()| place(&scratch, &api.join("src/generated"), check));
    fs::remove_dir_all(&scratch).with_context(|| format!("cannot remove {}", scratch.display()))?;
    outcome
}

fn generate(api: &Path, into: &Path) -> Result<()> {
    let descriptors = protox::compile(CONTRACTS, [api.join("proto")]).context("a contract does not compile")?;
    tonic_prost_build::configure()
        .out_dir(into)
        // It holds a token: `api::trust` says what may be seen of it.
        .skip_debug([".picket.trust.v1.Open"])
        .compile_fds(descriptors)
        .context("the contracts compile, but no code could be generated")
}

/// Compares what was made with what is committed, and replaces the latter unless told only to check.
fn place(made: &Path, committed: &Path, check: bool) -> Result<()> {
    for name in GENERATED {
        let new = fs::read(made.join(name)).with_context(|| format!("nothing was generated for {name}"))?;
        let target = committed.join(name);
        let is_current = fs::read(&target).is_ok_and(|old| old == new);
        if check && !is_current {
            bail!("api/src/generated/{name} is stale: run `cargo run -p api-codegen` and commit the result");
        }
        if !is_current {
            fs::write(&target, new).with_context(|| format!("cannot write {}", target.display()))?;
        }
    }
    Ok(())
}
