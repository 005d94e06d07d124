//! `canvasd inspect`: what a checkpoint is.

use std::io::Write;

use clap::Args;

use super::{CliError, fetch, wire};
use crate::checkpoint::{self, Inspection, Source};

/// Options of `canvasd inspect`.
#[derive(Debug, Args)]
pub struct Arguments {
    /// Folder, .gguf file or name on the hub [default: the small model inside the program].
    #[arg(value_name = "MODEL")]
    model: Option<String>,

    /// Show it as it would be with its matrices in blocks of this type.
    #[arg(long, value_name = "TYPE")]
    quantize: Option<String>,
}

/// Prints the description; no tensor is read.
pub fn run(arguments: &Arguments) -> Result<(), CliError> {
    let source = fetch::present(Source::parse(arguments.model.as_deref())?)?;
    let checkpoint = wire::quantized(checkpoint::open(&source)?, arguments.quantize.as_deref())?;
    let inspection = Inspection::of(&checkpoint, checkpoint::available());
    write!(std::io::stdout(), "{inspection}").map_err(CliError::io("the description cannot be printed"))
}
