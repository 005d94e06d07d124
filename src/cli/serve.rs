//! `canvasd serve`: the server from its first line to its last.

use std::io::Write;
use std::net::{SocketAddr, ToSocketAddrs};
use std::path::{Path, PathBuf};
use std::time::Duration;

use axum::Router;
use clap::Args;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::CliError;
use super::descriptors;
use super::listen::{self, Bounds};
use super::options::{self, ModelOptions, push};
use super::signals::Signals;
use super::wire::{self, House};
use crate::api::{self, ApiSettings, AppState, Keys, ModelCard};
use crate::config::Config;
use crate::model::Path as Instructions;
use crate::scheduler::{Handle, State};

/// How long connections may take to send their last bytes after the engine has drained.
const LAST_BYTES: Duration = Duration::from_secs(5);

/// Options of `canvasd serve`.
#[derive(Debug, Args)]
pub struct Arguments {
    #[command(flatten)]
    model: ModelOptions,

    /// Address or host name to listen on; beyond this machine an API key is required [default: 127.0.0.1].
    #[arg(long, value_name = "HOST")]
    host: Option<String>,

    /// TCP port, 0 for a free one [default: 8000].
    #[arg(long, short, value_name = "PORT")]
    port: Option<u16>,

    /// File with one API key per line; keys can also stand in CANVASD_API_KEY, separated by commas.
    #[arg(long, value_name = "FILE")]
    api_key_file: Option<PathBuf>,

    /// Listen beyond this machine without an API key: everybody who reaches the port may use the model.
    #[arg(long)]
    allow_unauthenticated: bool,

    /// Memory for keys and values, such as 2GiB [default: a share of what is free].
    #[arg(long, value_name = "SIZE")]
    kv_memory: Option<String>,
}

impl Arguments {
    fn config(&self) -> Result<Config, CliError> {
        let mut flags = self.model.overrides();
        push(&mut flags, "host", &self.host);
        push(&mut flags, "port", &self.port);
        push(&mut flags, "api_key_file", &self.api_key_file.as_ref().map(|path| path.display()));
        push(&mut flags, "allow_unauthenticated", &self.allow_unauthenticated.then_some(true));
        push(&mut flags, "kv_memory", &self.kv_memory);
        options::configure(self.model.config.as_ref(), &flags)
    }
}

/// Serves until SIGTERM, ctrl-C, or the engine's end. The first signal drains; a second one ends it at once.
pub fn run(arguments: Arguments) -> Result<(), CliError> {
    let config = arguments.config()?;
    options::start_log(&config, "info")?;
    let keys = keys(&config)?;
    let address = address(&config, &keys)?;
    // Before the model is loaded: an occupied port should be told at once.
    let listener = std::net::TcpListener::bind(address)
        .and_then(|listener| listener.set_nonblocking(true).map(|()| listener))
        .map_err(|source| CliError::Listen { address, source })?;
    super::block_on(async {
        let mut signals = Signals::new()?;
        let settings = api_settings(&config, keys);
        let door = Door::open(listener, api::loading(&settings), bounds(&config))?;
        tracing::info!(address = %door.address, "loading the model");
        let loading = config.clone();
        match signals.or(move || wire::open(&loading)).await {
            Ok(house) => serve(config, settings, door, house?, signals).await,
            Err(name) => {
                tracing::info!("{name}: stopped before the model was loaded");
                Ok(())
            }
        }
    })
}

/// The socket, which is answered on from the start; what answers changes when the model is there.
struct Door {
    address: SocketAddr,
    router: watch::Sender<Router>,
    close: CancellationToken,
    serving: JoinHandle<()>,
}

impl Door {
    /// Begins to answer; needs a runtime.
    fn open(listener: std::net::TcpListener, router: Router, bounds: Bounds) -> Result<Door, CliError> {
        let listener = TcpListener::from_std(listener).map_err(CliError::io("the listener cannot be used"))?;
        let address = listener.local_addr().map_err(CliError::io("the listener has no address"))?;
        let (router, current) = watch::channel(router);
        let close = CancellationToken::new();
        let serving = tokio::spawn(listen::serve(listener, current, bounds, close.clone()));
        Ok(Door { address, router, close, serving })
    }
}

async fn serve(
    config: Config,
    settings: ApiSettings,
    door: Door,
    house: House,
    mut signals: Signals,
) -> Result<(), CliError> {
    let Door { address, router, close, serving } = door;
    let handle = house.engine.handle();
    let card = ModelCard {
        id: house.name.clone(),
        aliases: config.model_aliases.clone(),
        sampler: house.sampler,
        variant: variant(&config, house.digest, house.path),
    };
    let state = AppState::new(settings.clone(), card, house.text.clone(), handle.clone());
    let _ = router.send_replace(api::router(state));
    greet(&house, &config, &settings.keys, address);

    tokio::select! {
        () = stopped(&handle) => {
            close.cancel();
            let _ = tokio::time::timeout(LAST_BYTES, serving).await;
            return Err(CliError::EngineStopped);
        }
        name = signals.next() => tracing::info!(
            "{name}: no new requests; running ones have {} s to end (again to stop at once)", config.grace_seconds
        ),
    }
    let mut drained = Box::pin(async {
        // Connections stay open, and new ones are taken, until the last answer has ended: whoever asks meanwhile is told
        // that the server stops, and probes are answered.
        house.engine.drain(Duration::from_secs(config.grace_seconds)).await;
        close.cancel();
        let _ = tokio::time::timeout(LAST_BYTES, serving).await;
    });
    tokio::select! {
        () = &mut drained => {
            tracing::info!("stopped");
            Ok(())
        }
        name = signals.next() => {
            tracing::warn!("{name} again: stopped without waiting");
            // Dropping the engine would wait for the running pass, which may take many seconds: it ends with the process.
            std::mem::forget(drained);
            Err(CliError::Interrupted)
        }
    }
}

/// Everything beside the build on which the text of a seed depends.
fn variant(config: &Config, digest: u64, path: Option<Instructions>) -> String {
    let Config { device, dtype, quantize, precision, kv_dtype, .. } = config;
    let instructions = path.map_or("none", Instructions::name);
    format!("{digest:016x} {device} {instructions} {dtype:?} {quantize:?} {precision:?} {kv_dtype:?}")
}

/// Resolves when the engine has ended by itself.
async fn stopped(handle: &Handle) {
    // The sender lives as long as the handle, so waiting ends with the state alone.
    let _ = handle.watch().wait_for(|state| *state == State::Stopped).await;
}

/// The keys from environment and file together.
fn keys(config: &Config) -> Result<Keys, CliError> {
    let mut keys = options::api_keys()?;
    if let Some(path) = &config.api_key_file {
        keys.extend(keys_in(path)?);
    }
    Ok(Keys::new(keys))
}

fn keys_in(path: &Path) -> Result<Vec<String>, CliError> {
    let wrong = |why: String| CliError::Keys { path: path.into(), why };
    let text = std::fs::read_to_string(path).map_err(|error| wrong(error.to_string()))?;
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    let keys: Vec<String> = lines.map(str::to_owned).collect();
    // An empty file is more likely an accident than a wish to be open.
    if keys.is_empty() { Err(wrong("it holds no key".into())) } else { Ok(keys) }
}

/// The address to listen on, which must not be open to everybody by accident.
fn address(config: &Config, keys: &Keys) -> Result<SocketAddr, CliError> {
    let host = config.host.trim_start_matches('[').trim_end_matches(']');
    let resolve = |source| CliError::Resolve { host: config.host.clone(), source };
    let none = || resolve(std::io::Error::other("the name has no address"));
    let address = (host, config.port).to_socket_addrs().map_err(resolve)?.next().ok_or_else(none)?;
    api::check_door(address.ip(), keys, config.allow_unauthenticated)?;
    Ok(address)
}

/// What clients may hold. The process's limit on open files is raised to it where that is needed.
fn bounds(config: &Config) -> Bounds {
    Bounds {
        connections: descriptors::connections(config.max_connections),
        head: Duration::from_secs(config.header_timeout_seconds),
        stall: Duration::from_secs(config.stall_timeout_seconds),
    }
}

fn api_settings(config: &Config, keys: Keys) -> ApiSettings {
    ApiSettings {
        keys,
        cors_origins: config.cors_origins.clone(),
        body_limit: usize::try_from(config.body_limit.0).unwrap_or(usize::MAX),
        request_timeout: Duration::from_secs(config.request_timeout_seconds),
        default_max_tokens: config.default_max_tokens,
        ..ApiSettings::default()
    }
}

/// The first lines: where, what, and a command to try. Nobody need read them: a server whose output is closed serves.
fn greet(house: &House, config: &Config, keys: &Keys, address: SocketAddr) {
    let mut reachable = address;
    if address.ip().is_unspecified() {
        let loopback = if address.is_ipv4() { [127, 0, 0, 1].into() } else { std::net::Ipv6Addr::LOCALHOST.into() };
        reachable.set_ip(loopback);
    }
    let authorization = if keys.is_empty() { "" } else { " -H \"authorization: Bearer $CANVASD_API_KEY\"" };
    let mut out = std::io::stdout().lock();
    let _ = writeln!(
        out,
        "canvasd {} serves {} ({}, {} threads, loaded in {:.2} s)\n\
         listening on http://{reachable}\n\
         try it:\n  \
         curl http://{reachable}/v1/chat/completions{authorization} -H 'content-type: application/json' \
         -d '{{\"model\": \"{}\", \"messages\": [{{\"role\": \"user\", \"content\": \"What is the capital of France?\"}}]}}'",
        env!("CARGO_PKG_VERSION"),
        house.name,
        config.device,
        house.threads,
        house.took.as_secs_f64(),
        house.name,
    );
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::InstructionPath;

    #[test]
    fn a_key_file_is_read_line_by_line() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("keys");
        std::fs::write(&path, "# ours\nfirst\n\n  second \n").unwrap();
        assert_eq!(keys_in(&path).unwrap(), ["first", "second"]);
        std::fs::write(&path, "# nothing\n").unwrap();
        assert!(keys_in(&path).unwrap_err().to_string().contains("no key"));
    }

    #[test]
    fn only_this_machine_is_served_without_a_key() {
        let at = |host: &str| Config { host: host.into(), ..Config::default() };
        for host in ["127.0.0.1", "localhost", "::1", "[::1]"] {
            // A machine without IPv6 cannot resolve all of them; what matters is that none is refused as open.
            assert!(!matches!(address(&at(host), &Keys::default()), Err(CliError::OpenDoor(_))), "{host}");
        }
        assert!(matches!(address(&at("0.0.0.0"), &Keys::default()), Err(CliError::OpenDoor(_))));
        assert!(address(&at("0.0.0.0"), &Keys::new(["key"])).is_ok());
        let open = Config { allow_unauthenticated: true, ..at("0.0.0.0") };
        assert!(address(&open, &Keys::default()).is_ok());
        assert!(matches!(address(&at("no.such.host.invalid"), &Keys::default()), Err(CliError::Resolve { .. })));
    }

    #[test]
    fn the_fingerprint_knows_the_instructions_that_compute() {
        let variants = Instructions::ALL.map(|path| variant(&Config::default(), 1, Some(path)));
        assert_eq!(variants.iter().collect::<std::collections::HashSet<_>>().len(), variants.len());
        // What was asked for computes, not the best that the processor has.
        let plain = Config { cpu_path: Some(InstructionPath::Portable), threads: Some(1), ..Config::default() };
        let (model, _) = wire::load(&plain, 1).unwrap();
        assert_eq!(model.path(), Some(Instructions::Portable));
    }
}
