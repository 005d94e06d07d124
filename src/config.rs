//! One typed configuration for the whole program: defaults < file < environment < flags.
//!
//! Every key has one name everywhere: `kv_memory` in the file is `CANVASD_KV_MEMORY` in the environment and, where a
//! flag exists, `--kv-memory` on the command line. Knows no other room; `cli` hands the values on. Secrets are not part
//! of it: API keys come from `CANVASD_API_KEY` or from the file that `api_key_file` names.

mod bytes;
mod environment;
mod origin;

use std::ffi::OsString;
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

pub use bytes::Bytes;
pub use environment::{FILE_VARIABLE, SECRETS_VARIABLE, unknown_variables, utf8};

/// The longest time, in seconds.
const YEAR: u64 = 365 * 24 * 3600;
/// Most canvases at once.
const MOST_RUNNING: u64 = 1 << 16;
/// Most rows of a pass.
const MOST_ROWS: u64 = 1 << 20;
/// A page of keys and values: less is never encoded at once.
pub const LEAST_ENCODE_ROWS: usize = 64;

/// Everything that can be configured. `config/canvasd.toml` explains each key and shows the same defaults.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Address or host name to listen on.
    pub host: String,
    /// TCP port; 0 takes a free one.
    pub port: u16,
    /// Where the model is; `None` is the small one inside the program.
    pub model: Option<String>,
    /// Further names under which clients may ask for the model.
    pub model_aliases: Vec<String>,
    /// Where the model computes.
    pub device: Device,
    /// Type that the model's matrices are converted to; `None` keeps the one they are stored in.
    pub dtype: Option<NumberFormat>,
    /// Quantization that the model's matrices are put into at load, such as `q8_0`; `None` keeps them as they are stored. Not
    /// together with `dtype`.
    pub quantize: Option<String>,
    /// How activations enter the CPU's products with quantized matrices.
    pub precision: ProductPrecision,
    /// The CPU's instructions; `None` is the best that this processor has.
    pub cpu_path: Option<InstructionPath>,
    /// How keys and values are held; `None` is bf16, or f32 where the model's matrices are f32.
    pub kv_dtype: Option<NumberFormat>,
    /// Threads of the computation; `None` is one per physical core.
    pub threads: Option<usize>,
    /// File with one API key per line.
    pub api_key_file: Option<PathBuf>,
    /// Whether to listen beyond this machine without an API key.
    pub allow_unauthenticated: bool,
    /// Origins whose browser pages may call the server; `"*"` is any.
    pub cors_origins: Vec<String>,
    /// Largest request body.
    pub body_limit: Bytes,
    /// Longest time one request may take, in seconds.
    pub request_timeout_seconds: u64,
    /// Longest time a client may take to send its request head, in seconds.
    pub header_timeout_seconds: u64,
    /// Most connections open at once; further ones wait.
    pub max_connections: usize,
    /// `max_tokens` of a chat request that names none; `None` is whatever the context still holds.
    pub default_max_tokens: Option<usize>,
    /// Most requests waiting for admission; eight times as many choices may wait.
    pub queue: usize,
    /// Most canvases being denoised at once.
    pub max_running: usize,
    /// Most rows of one forward pass; `None` is what `max_running` canvases and `encode_rows` may need.
    pub max_rows_per_pass: Option<usize>,
    /// Most prompt rows that ride in a pass beside the canvases.
    pub encode_rows: usize,
    /// Memory for keys and values, cached prefixes included; `None` is a share of what is free.
    pub kv_memory: Option<Bytes>,
    /// Part of `kv_memory` that prefixes of finished requests may keep.
    pub prefix_cache: Option<Bytes>,
    /// How long running requests may go on after SIGTERM, in seconds.
    pub grace_seconds: u64,
    /// How long a client may take nothing of an answer that waits for it before its connection is reset, in seconds.
    pub stall_timeout_seconds: u64,
    /// What to log: a level, or directives such as `info,canvasd::scheduler=debug`; `None` is what suits the command.
    pub log: Option<String>,
    /// How log lines are written.
    pub log_format: LogFormat,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            host: "127.0.0.1".into(),
            port: 8000,
            model: None,
            model_aliases: Vec::new(),
            device: Device::Cpu,
            dtype: None,
            quantize: None,
            precision: ProductPrecision::Bytes,
            cpu_path: None,
            kv_dtype: None,
            threads: None,
            api_key_file: None,
            allow_unauthenticated: false,
            cors_origins: Vec::new(),
            body_limit: Bytes::mebi(8),
            request_timeout_seconds: 600,
            header_timeout_seconds: 30,
            max_connections: 1024,
            default_max_tokens: None,
            queue: 256,
            max_running: 32,
            max_rows_per_pass: None,
            encode_rows: 256,
            kv_memory: None,
            prefix_cache: None,
            grace_seconds: 30,
            stall_timeout_seconds: 30,
            log: None,
            log_format: LogFormat::Text,
        }
    }
}

/// Where the model computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Device {
    /// The processor.
    Cpu,
    /// An NVIDIA GPU, by number; needs a build with `--features cuda`.
    Cuda(usize),
    /// An Apple GPU, by number; needs a build with `--features metal`.
    Metal(usize),
}

impl FromStr for Device {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (kind, number) = match text.split_once(':') {
            None => (text, Ok(0)),
            Some((kind, number)) => (kind, number.parse()),
        };
        match (kind, number) {
            ("cpu", Ok(0)) if !text.contains(':') => Ok(Device::Cpu),
            ("cuda", Ok(number)) => Ok(Device::Cuda(number)),
            ("metal", Ok(number)) => Ok(Device::Metal(number)),
            _ => Err(format!("{text:?} is no device; use cpu, cuda, cuda:1 or metal")),
        }
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Device::Cpu => f.write_str("cpu"),
            Device::Cuda(0) => f.write_str("cuda"),
            Device::Cuda(number) => write!(f, "cuda:{number}"),
            Device::Metal(0) => f.write_str("metal"),
            Device::Metal(number) => write!(f, "metal:{number}"),
        }
    }
}

/// Type of the model's matrices.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NumberFormat {
    /// 32-bit floating point: exact against the reference, slower.
    F32,
    /// 16-bit brain floating point: the published checkpoints' own format.
    Bf16,
}

impl fmt::Display for NumberFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            NumberFormat::F32 => "f32",
            NumberFormat::Bf16 => "bf16",
        })
    }
}

/// How activations enter products with quantized matrices.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ProductPrecision {
    /// As they are.
    Exact,
    /// Rounded to bf16, attention and soft embeddings included, where the processor has the instructions: faster.
    Bf16,
    /// Rounded to 8 bits, where the processor has the instructions: faster.
    Bytes,
}

/// Instructions that the CPU's products may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum InstructionPath {
    /// Any processor's.
    Portable,
    /// AVX2 with FMA and F16C.
    Avx2,
    /// AVX-512, with what it has for bf16 and bytes.
    Avx512,
    /// AMX tiles, besides AVX-512.
    Amx,
}

/// How log lines are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object per line.
    Json,
}

/// Serialized as the text it is written as; a memory amount may also be a plain integer.
macro_rules! as_text {
    ($type:ty) => {
        impl Serialize for $type {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = match toml::Value::deserialize(deserializer)? {
                    toml::Value::String(text) => text,
                    toml::Value::Integer(number) => number.to_string(),
                    other => return Err(D::Error::custom(format!("a text is wanted, not {}", other.type_str()))),
                };
                text.parse().map_err(D::Error::custom)
            }
        }
    };
}

as_text!(Device);
as_text!(Bytes);

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("the configuration file {} cannot be read", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file is not TOML, has an unknown key or a value of the wrong kind; the message shows the line.
    #[error("the configuration file {} is wrong:\n{why}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// The parser's words.
        why: String,
    },
    /// A variable or flag has a value that its key cannot take.
    #[error("{origin}: {why}")]
    Value {
        /// The variable or flag.
        origin: String,
        /// What is wrong.
        why: String,
    },
    /// A value is out of its range, or values contradict each other.
    #[error("configuration: {0}")]
    Contradiction(String),
}

/// A value from the command line, for the key of the same name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Override {
    /// The key.
    pub key: &'static str,
    /// Its value as text.
    pub value: String,
}

impl Config {
    /// Reads `file` if one is given, lets `environment` (a look-up by variable name) and then `flags` override it, and
    /// checks the result.
    pub fn load(
        file: Option<&Path>,
        environment: impl Fn(&str) -> Option<OsString>,
        flags: &[Override],
    ) -> Result<Config, ConfigError> {
        let mut config = match file {
            None => Config::default(),
            Some(path) => {
                let text = std::fs::read_to_string(path)
                    .map_err(|source| ConfigError::Unreadable { path: path.into(), source })?;
                toml::from_str(&text)
                    .map_err(|error| ConfigError::File { path: path.into(), why: error.to_string() })?
            }
        };
        for key in KEYS {
            if let Some((variable, value)) = environment::value(key, &environment)? {
                config = config.with(key, &value, &variable)?;
            }
        }
        for flag in flags {
            config = config.with(flag.key, &flag.value, &format!("--{}", flag.key.replace('_', "-")))?;
        }
        config.check()?;
        Ok(config)
    }

    /// The same configuration with one key's value taken from text.
    fn with(self, key: &str, text: &str, origin: &str) -> Result<Config, ConfigError> {
        let wrong = |why: String| ConfigError::Value { origin: format!("{origin}={text}"), why };
        let table = toml::Table::try_from(&self).map_err(|error| wrong(error.to_string()))?;
        let mut first_error = None;
        for value in readings(text) {
            let mut table = table.clone();
            table.insert(key.into(), value);
            match table.try_into() {
                Ok(config) => return Ok(config),
                Err(error) => first_error = first_error.or(Some(error.message().to_owned())),
            }
        }
        let mut why = first_error.unwrap_or_default();
        if key == "port" && text.contains("://") {
            why.push_str("; Kubernetes sets this variable for a service named canvasd: set enableServiceLinks: false");
        }
        Err(wrong(why))
    }

    fn check(&self) -> Result<(), ConfigError> {
        self.check_ranges()?;
        let mut named = self.cors_origins.iter().filter(|origin| *origin != "*");
        if let Some((origin, why)) = named.find_map(|origin| Some((origin, origin::check(origin).err()?))) {
            return Err(ConfigError::Contradiction(format!(
                "cors_origins: {origin:?} is not what a browser sends: {why}; write scheme://host or scheme://host:port, or \
                 \"*\" for any"
            )));
        }
        if let (Some(scheme), Some(dtype)) = (&self.quantize, self.dtype) {
            return Err(ConfigError::Contradiction(format!(
                "quantize ({scheme}) and dtype ({dtype}) undo each other: the matrices would be rounded into blocks and then \
                 widened again, which saves nothing; leave one of them out"
            )));
        }
        if let Some(all) = self.max_rows_per_pass.filter(|all| self.encode_rows > *all) {
            return Err(ConfigError::Contradiction(format!(
                "encode_rows ({}) must not exceed max_rows_per_pass ({all})",
                self.encode_rows
            )));
        }
        if let (Some(cache), Some(all)) = (self.prefix_cache, self.kv_memory)
            && cache > all
        {
            return Err(ConfigError::Contradiction(format!(
                "prefix_cache ({cache}) is a part of kv_memory ({all}) and must not exceed it"
            )));
        }
        Ok(())
    }

    fn check_ranges(&self) -> Result<(), ConfigError> {
        let at_least_one = [
            ("threads", self.threads.unwrap_or(1)),
            ("max_connections", self.max_connections),
            ("default_max_tokens", self.default_max_tokens.unwrap_or(1)),
            ("queue", self.queue),
            ("max_running", self.max_running),
            ("max_rows_per_pass", self.max_rows_per_pass.unwrap_or(1)),
            ("body_limit", usize::try_from(self.body_limit.0).unwrap_or(usize::MAX)),
            ("request_timeout_seconds", usize::try_from(self.request_timeout_seconds).unwrap_or(usize::MAX)),
            ("header_timeout_seconds", usize::try_from(self.header_timeout_seconds).unwrap_or(usize::MAX)),
            ("stall_timeout_seconds", usize::try_from(self.stall_timeout_seconds).unwrap_or(usize::MAX)),
        ];
        if let Some((key, _)) = at_least_one.iter().find(|(_, value)| *value == 0) {
            return Err(ConfigError::Contradiction(format!("{key} must be at least 1")));
        }
        if self.encode_rows < LEAST_ENCODE_ROWS {
            return Err(ConfigError::Contradiction(format!("encode_rows must be at least {LEAST_ENCODE_ROWS}")));
        }
        // What is larger is a slip, and would overflow a sum or take hours to prepare.
        let at_most = [
            ("threads", self.threads.unwrap_or(1) as u64, 1024),
            ("max_running", self.max_running as u64, MOST_RUNNING),
            ("max_rows_per_pass", self.max_rows_per_pass.unwrap_or(1) as u64, MOST_ROWS),
            ("encode_rows", self.encode_rows as u64, MOST_ROWS),
            ("request_timeout_seconds", self.request_timeout_seconds, YEAR),
            ("header_timeout_seconds", self.header_timeout_seconds, YEAR),
            ("grace_seconds", self.grace_seconds, YEAR),
            ("stall_timeout_seconds", self.stall_timeout_seconds, YEAR),
        ];
        if let Some((key, _, most)) = at_most.iter().find(|(_, value, most)| value > most) {
            return Err(ConfigError::Contradiction(format!("{key} must be at most {most}")));
        }
        Ok(())
    }
}

/// Every key, in the order of `config/canvasd.toml`; a test keeps it equal to the fields of [`Config`].
pub const KEYS: [&str; 29] = [
    "host",
    "port",
    "model",
    "model_aliases",
    "device",
    "dtype",
    "quantize",
    "precision",
    "cpu_path",
    "kv_dtype",
    "threads",
    "api_key_file",
    "allow_unauthenticated",
    "cors_origins",
    "body_limit",
    "request_timeout_seconds",
    "header_timeout_seconds",
    "max_connections",
    "default_max_tokens",
    "queue",
    "max_running",
    "max_rows_per_pass",
    "encode_rows",
    "kv_memory",
    "prefix_cache",
    "grace_seconds",
    "stall_timeout_seconds",
    "log",
    "log_format",
];

/// The TOML values that a text from environment or flag may mean, the most specific first.
fn readings(text: &str) -> Vec<toml::Value> {
    let mut readings = Vec::new();
    if let Ok(value) = text.parse() {
        readings.push(toml::Value::Boolean(value));
    }
    if let Ok(value) = text.parse() {
        readings.push(toml::Value::Integer(value));
    }
    readings.push(toml::Value::String(text.into()));
    let items = text.split(',').map(str::trim).filter(|item| !item.is_empty());
    readings.push(toml::Value::Array(items.map(|item| toml::Value::String(item.into())).collect()));
    readings
}

#[cfg(test)]
mod tests;
