//! `canvasd openapi`: the document from which `openapi/openapi.json` is made.

use std::io::Write;

use super::CliError;

/// Prints the document on standard output.
pub fn run() -> Result<(), CliError> {
    let text = crate::api::openapi();
    let mut out = std::io::stdout().lock();
    out.write_all(text.trim_end().as_bytes())
        .and_then(|()| out.write_all(b"\n"))
        .map_err(CliError::io("the document cannot be written"))
}
