//! The `canvasd` program: parse, run, report the error.

use std::process::ExitCode;

fn main() -> ExitCode {
    canvasd::cli::main()
}
