//! `picket-proxy`: hands over to the library and turns the outcome into an exit code.

use std::process::ExitCode;

fn main() -> ExitCode {
    proxy::cli::main()
}
