//! The options that several commands share, and how they become a [`Config`].

use std::ffi::OsString;
use std::path::PathBuf;

use clap::Args;

use super::CliError;
use crate::config::{self, Config, ConfigError, FILE_VARIABLE, Override, SECRETS_VARIABLE};
use crate::telemetry;

/// Which model, and on what it computes.
#[derive(Debug, Args)]
pub struct ModelOptions {
    /// Configuration file; `config/canvasd.toml` in the source explains every key [default: the one that CANVASD_CONFIG names].
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,

    /// Folder in Hugging Face layout, .gguf file, or a name on the hub (owner/name, owner/name@revision, owner/name:Q4_K_M)
    /// [default: the small model inside the program].
    #[arg(long, short, value_name = "MODEL", action = clap::ArgAction::Append)]
    pub model: Vec<String>,

    /// Where to compute: cpu, cuda, cuda:1 or metal (the GPU ones need a build with that feature) [default: cpu].
    #[arg(long, value_name = "DEVICE")]
    pub device: Option<String>,

    /// Convert the model's matrices to f32 or bf16, blocks too; not with --quantize [default: as they are stored].
    #[arg(long, value_name = "FORMAT")]
    pub dtype: Option<String>,

    /// Put the model's matrices into blocks while loading, to save memory: q8_0, q6_k, q5_k_m, q4_k_m, q5_k, q4_k, q5_0, q4_0.
    #[arg(long, value_name = "TYPE")]
    pub quantize: Option<String>,

    /// How numbers enter products on the CPU: exact, or rounded and faster: bf16, bytes (8 bits) [default: bytes].
    #[arg(long, value_name = "PRECISION")]
    pub precision: Option<String>,

    /// How keys and values are held: bf16, or f32 in twice the memory [default: bf16, or f32 with f32 matrices].
    #[arg(long, value_name = "FORMAT")]
    pub kv_dtype: Option<String>,

    /// Threads that compute [default: one per physical core].
    #[arg(long, short, value_name = "N")]
    pub threads: Option<usize>,

    /// What to log on standard error: error, warn, info, debug, trace, or directives.
    #[arg(long, value_name = "LEVEL")]
    pub log: Option<String>,
}

impl ModelOptions {
    /// The flags given, as overrides.
    pub fn overrides(&self) -> Vec<Override> {
        let mut flags = Vec::new();
        // Several are handed on as a list, which is refused where names are read, with what to do instead.
        push(&mut flags, "model", &(!self.model.is_empty()).then(|| self.model.join(",")));
        push(&mut flags, "device", &self.device);
        push(&mut flags, "dtype", &self.dtype);
        push(&mut flags, "quantize", &self.quantize);
        push(&mut flags, "precision", &self.precision);
        push(&mut flags, "kv_dtype", &self.kv_dtype);
        push(&mut flags, "threads", &self.threads);
        push(&mut flags, "log", &self.log);
        flags
    }
}

/// Adds `value`, if there is one, as an override of `key`.
pub fn push(flags: &mut Vec<Override>, key: &'static str, value: &Option<impl ToString>) {
    if let Some(value) = value {
        flags.push(Override { key, value: value.to_string() });
    }
}

/// The configuration from process environment and flags, and from `file` or the one that the environment names.
pub fn configure(file: Option<&PathBuf>, flags: &[Override]) -> Result<Config, CliError> {
    // Empty counts as not set, as everywhere: container tools cannot unset a variable.
    let named = std::env::var_os(FILE_VARIABLE).filter(|path| !path.is_empty()).map(PathBuf::from);
    let file = file.or(named.as_ref()).map(PathBuf::as_path);
    Ok(Config::load(file, |name| std::env::var_os(name), flags)?)
}

/// Starts the log, from `level` on unless the configuration says otherwise.
pub fn start_log(config: &Config, level: &str) -> Result<(), CliError> {
    telemetry::start(config.log.as_deref().unwrap_or(level), config.log_format)?;
    // No error, as a key that the file does not know is: others may set variables for purposes of their own.
    for name in config::unknown_variables(std::env::vars_os()) {
        tracing::warn!("{name} is set and means nothing: no key of the configuration has that name (canvasd --help)");
    }
    Ok(())
}

/// The API keys that the environment holds.
pub fn api_keys() -> Result<Vec<String>, CliError> {
    keys_in(std::env::var_os(SECRETS_VARIABLE).unwrap_or_default())
}

/// The keys in the variable's value, which may be empty but not without a key: that is more likely an accident than a wish
/// to be open.
fn keys_in(value: OsString) -> Result<Vec<String>, CliError> {
    let text = config::utf8(SECRETS_VARIABLE, value)?;
    let keys: Vec<String> = text.split(',').map(str::trim).filter(|key| !key.is_empty()).map(str::to_owned).collect();
    if keys.is_empty() && !text.is_empty() {
        let why = "it holds no key; set it to one or more keys, separated by commas, or unset it".into();
        return Err(ConfigError::Value { origin: SECRETS_VARIABLE.into(), why }.into());
    }
    Ok(keys)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_variable_without_a_key_is_no_wish_to_be_open() {
        assert_eq!(keys_in(" first ,,second".into()).unwrap(), ["first", "second"]);
        assert!(keys_in("".into()).unwrap().is_empty());
        for blank in [" ", ",", " , ", "\n"] {
            assert!(keys_in(blank.into()).unwrap_err().to_string().contains("CANVASD_API_KEY: it holds no key"));
        }
    }

    #[cfg(unix)]
    #[test]
    fn a_key_that_is_no_text_is_refused_and_not_shown() {
        use std::os::unix::ffi::OsStringExt;

        let error = keys_in(OsString::from_vec(b"caf\xe9".into())).unwrap_err().to_string();
        assert!(error.contains("CANVASD_API_KEY") && error.contains("UTF-8") && !error.contains("caf"), "{error}");
    }
}
