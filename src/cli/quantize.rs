//! `canvasd quantize`: a smaller version of a checkpoint, as a GGUF file.

use std::io::{IsTerminal, Write};
use std::path::PathBuf;

use clap::Args;

use super::{CliError, fetch};
use crate::checkpoint::{self, Quantization, Source};

/// Options of `canvasd quantize`.
#[derive(Debug, Args)]
pub struct Arguments {
    /// Folder, bf16 .gguf file or name on the hub.
    #[arg(value_name = "MODEL")]
    model: String,

    /// The file to write; it must not exist.
    #[arg(value_name = "OUT.gguf")]
    out: PathBuf,

    /// q8_0, q6_k, q5_k_m, q4_k_m, q5_k, q4_k, q5_0 or q4_0.
    #[arg(long = "type", value_name = "TYPE", default_value = "q4_k_m")]
    scheme: String,
}

/// Writes the file.
pub fn run(arguments: &Arguments) -> Result<(), CliError> {
    let scheme: Quantization = arguments.scheme.parse().map_err(CliError::Usage)?;
    // Before anything is downloaded.
    checkpoint::vacant(&arguments.out).map_err(CliError::Quantize)?;
    let source = Source::parse(Some(&arguments.model))?;
    let checkpoint = fetch::open(&source, fetch::Form::plain())?;
    let terminal = std::io::stderr().is_terminal();
    let report = |done: u64, total: u64| {
        if terminal {
            // Progress that cannot be written is no reason to stop.
            let _ = write!(std::io::stderr(), "\r\x1b[K{:3} %", done.saturating_mul(100) / total.max(1));
        }
    };
    let written = checkpoint.write_gguf(scheme, &arguments.out, &report).map_err(CliError::Quantize);
    if terminal {
        let _ = writeln!(std::io::stderr());
    }
    let written = written?;
    let (tensors, mib) = (written.tensors, written.bytes as f64 / f64::from(1 << 20));
    let left_out = match written.left_out {
        0 => String::new(),
        count => format!("; {count} tensors of the vision tower have no place in it"),
    };
    let line = format!("{}: {tensors} tensors, {mib:.1} MiB, {scheme}{left_out}", arguments.out.display());
    writeln!(std::io::stdout(), "{line}").map_err(CliError::io("the summary cannot be printed"))
}
