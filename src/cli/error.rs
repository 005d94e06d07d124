//! What a command can fail with, its exit code, and what the user can do about it.

use std::net::SocketAddr;
use std::path::PathBuf;

use crate::api::OpenDoor;
use crate::checkpoint::CheckpointError;
use crate::config::ConfigError;
use crate::kernels::KernelError;
use crate::model::LoadError;
use crate::pass::{EngineError, SegmentError};
use crate::prompt::PromptError;
use crate::scheduler::{JobError, Refusal, StartError};
use crate::telemetry::LogError;

/// Why a command did not do its work.
#[derive(Debug, thiserror::Error)]
pub enum CliError {
    /// The configuration makes no sense.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The log cannot be set up.
    #[error(transparent)]
    Log(#[from] LogError),
    /// The command line contradicts itself, or lacks something.
    #[error("{0}")]
    Usage(String),
    /// The file of API keys cannot be used.
    #[error("the API keys in {} cannot be read: {why}", path.display())]
    Keys {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// Everybody could use the server.
    #[error(transparent)]
    OpenDoor(#[from] OpenDoor),
    /// The model is not there or not readable.
    #[error("the model cannot be opened")]
    Checkpoint(#[from] CheckpointError),
    /// The model cannot be downloaded.
    #[error("the model cannot be fetched")]
    Fetch(#[source] CheckpointError),
    /// The smaller version cannot be made or written.
    #[error("the GGUF file cannot be made")]
    Quantize(#[source] CheckpointError),
    /// The model's tensors are not what its configuration says.
    #[error("the model {name} cannot be loaded")]
    Load {
        /// The model's name.
        name: String,
        /// Why.
        source: LoadError,
    },
    /// The checkpoint's tokenizer or template is not usable.
    #[error("the text part of the model {name} cannot be used")]
    Text {
        /// The model's name.
        name: String,
        /// Why.
        source: PromptError,
    },
    /// The scheduler does not start.
    #[error("the engine cannot start")]
    Start(#[from] StartError),
    /// The host name means nothing.
    #[error("the host {host:?} cannot be resolved")]
    Resolve {
        /// The name.
        host: String,
        /// Why.
        source: std::io::Error,
    },
    /// The address is taken or not ours.
    #[error("{address} cannot be listened on")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// Why.
        source: std::io::Error,
    },
    /// The prompt cannot become tokens.
    #[error("the prompt cannot be used")]
    Prompt(#[source] PromptError),
    /// The job was not taken.
    #[error("the request was refused")]
    Refused(#[from] Refusal),
    /// The job failed on its way.
    #[error("the answer was not completed")]
    Failed(#[from] JobError),
    /// The engine ended by itself.
    #[error("the engine stopped after an internal error; the log above says why")]
    EngineStopped,
    /// A pass of the model failed outside of the scheduler.
    #[error("the model failed")]
    Pass(#[from] EngineError),
    /// Of such a pass the part of one request failed.
    #[error("the model failed on a request")]
    Segment(#[from] SegmentError),
    /// What this machine can do cannot be measured: the kernels do not run.
    #[error("the kernels cannot be used")]
    Kernels(#[from] KernelError),
    /// A measurement found what it must not find, or could not be made.
    #[error("{0}")]
    Measurement(String),
    /// A read or write failed.
    #[error("{what}")]
    Io {
        /// What was tried.
        what: String,
        /// Why it failed.
        source: std::io::Error,
    },
    /// A server's probe failed.
    #[error("{url}: {why}")]
    Unhealthy {
        /// What was asked.
        url: String,
        /// What came back.
        why: String,
    },
    /// ctrl-C.
    #[error("interrupted")]
    Interrupted,
}

/// How a command takes the model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ModelArgument {
    /// It can do without: there is one inside the program.
    Optional,
    /// It must be named.
    Required,
}

impl CliError {
    /// An IO error with what was tried.
    pub(super) fn io(what: impl Into<String>) -> impl FnOnce(std::io::Error) -> CliError {
        let what = what.into();
        move |source| CliError::Io { what, source }
    }

    /// The process's exit code; `canvasd --help` lists them.
    pub fn exit_code(&self) -> u8 {
        use CliError::*;
        match self {
            Config(_)
            | Log(_)
            | Usage(_)
            | Keys { .. }
            | OpenDoor(_)
            | Start(StartError::TooSmall { .. } | StartError::KvMemory { .. }) => 2,
            Checkpoint(_) | Fetch(_) | Quantize(_) | Load { .. } | Text { .. } | Start(_) | Kernels(_) => 3,
            Resolve { .. } | Listen { .. } => 4,
            Interrupted => 130,
            Prompt(_)
            | Refused(_)
            | Failed(_)
            | Pass(_)
            | Segment(_)
            | Measurement(_)
            | EngineStopped
            | Io { .. }
            | Unhealthy { .. } => 1,
        }
    }

    /// What to do next, where the message does not say it, for a command that takes the model so.
    pub fn advice(&self, model: ModelArgument) -> Option<String> {
        use std::io::ErrorKind;
        match self {
            CliError::OpenDoor(_) => Some("(--allow-unauthenticated says that it is meant)".into()),
            CliError::Listen { source, address } => match source.kind() {
                ErrorKind::AddrInUse => Some(format!(
                    "another program listens there: stop it, or choose another port, such as --port {}",
                    address.port().saturating_add(1)
                )),
                ErrorKind::PermissionDenied => Some("ports below 1024 need a privilege: choose --port 8000".into()),
                ErrorKind::AddrNotAvailable => Some("this machine has no such address: try --host 0.0.0.0".into()),
                _ => None,
            },
            CliError::Checkpoint(
                CheckpointError::Name { .. } | CheckpointError::Hub { .. } | CheckpointError::Missing { .. },
            ) => match model {
                ModelArgument::Optional => Some("name no model to use the small one inside the program".into()),
                ModelArgument::Required => None,
            },
            CliError::Checkpoint(CheckpointError::Damaged { .. } | CheckpointError::DamagedTensor { .. }) => {
                Some("a model that came from the hub is mended by: canvasd fetch --verify MODEL".into())
            }
            CliError::Refused(Refusal::NeverFits { .. }) => {
                Some("shorten the prompt, or give a smaller --max-tokens".into())
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::error::Error;

    use super::*;

    #[test]
    fn the_model_inside_the_program_is_offered_where_it_can_be_used() {
        let error = CliError::from(CheckpointError::Name { name: "word".into(), why: "no such folder".into() });
        let offered = error.advice(ModelArgument::Optional);
        assert!(offered.is_some_and(|advice| advice.contains("inside the program")));
        assert_eq!(error.advice(ModelArgument::Required), None);
    }

    #[test]
    fn a_setting_is_the_configuration_s_and_memory_the_machine_s() {
        let code = |error: StartError| CliError::from(error).exit_code();
        assert_eq!(code(StartError::TooSmall { setting: "encode_rows", least: 64, given: 10 }), 2);
        assert_eq!(code(StartError::KvMemory { needed: 2, given: 1 }), 2);
        assert_eq!(code(StartError::WorkingMemory { needed: 2, given: 1 }), 3);
    }

    #[test]
    fn what_failed_is_said_once_and_keeps_its_cause() {
        let pass = CliError::from(EngineError::Device("no more memory".into()));
        assert_eq!((pass.to_string().as_str(), pass.exit_code()), ("the model failed", 1));
        assert!(pass.source().is_some_and(|cause| cause.is::<EngineError>()));
        let segment = CliError::from(SegmentError::NotFinite { row: 3 });
        assert!(segment.source().is_some_and(|cause| cause.is::<SegmentError>()) && segment.exit_code() == 1);
        let found = CliError::Measurement("memory has grown".into());
        assert_eq!((found.to_string().as_str(), found.exit_code()), ("memory has grown", 1));
    }
}
