//! `canvasd quantize`: a smaller version of a checkpoint, as a GGUF file.

use std::io::{IsTerminal, Write};
use std::path::PathBuf;
use std::sync::Arc;

use clap::Args;

use super::{CliError, fetch, until_stopped};
use crate::checkpoint::{NewFile, Quantization, Source};

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

/// Writes the file, unless SIGTERM or ctrl-C comes first.
pub fn run(arguments: Arguments) -> Result<(), CliError> {
    let scheme: Quantization = arguments.scheme.parse().map_err(CliError::Usage)?;
    let source = Source::parse(Some(&arguments.model))?;
    // Before anything is downloaded.
    let new = Arc::new(NewFile::begin(&arguments.out).map_err(CliError::Quantize)?);
    let writing = Arc::clone(&new);
    let result = until_stopped(move || write(&arguments, &source, scheme, &writing));
    // Work that was given up still holds the file, and ends with the process without removing it.
    new.discard();
    result
}

fn write(arguments: &Arguments, source: &Source, scheme: Quantization, new: &NewFile) -> Result<(), CliError> {
    let checkpoint = fetch::open(source, fetch::Form::plain())?;
    let terminal = std::io::stderr().is_terminal();
    let report = |done: u64, total: u64| {
        if terminal {
            // Progress that cannot be written is no reason to stop.
            let _ = write!(std::io::stderr(), "\r\x1b[K{:3} %", done.saturating_mul(100) / total.max(1));
        }
    };
    let written = checkpoint.write_gguf(scheme, new, &report).map_err(CliError::Quantize);
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
