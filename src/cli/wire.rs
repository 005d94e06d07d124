//! From the configuration to a running engine: opens the checkpoint, loads the model, makes the text room, starts the
//! scheduler.

#[cfg(test)]
mod agreement;

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{CliError, fetch};
use crate::checkpoint::{self, Checkpoint, GenerationDefaults, Quantization, Source};
use crate::config::{Config, Device, InstructionPath, NumberFormat, ProductPrecision};
use crate::diffusion::Sampler;
use crate::model::{
    DeviceChoice, DiffusionGemma, KvElement, LoadError, LoadOptions, Path, Precision, WeightType, sliding_pages,
};
use crate::pass::{Denoiser, Limits};
use crate::prompt::{Text, TextParts};
use crate::scheduler::{Engine, Settings};

/// A model ready to work.
pub struct House {
    /// Runs it.
    pub engine: Engine,
    /// Its language.
    pub text: Arc<Text>,
    /// Its name.
    pub name: String,
    /// [`Checkpoint::digest`] of what was loaded.
    pub digest: u64,
    /// How its checkpoint wants canvases denoised.
    pub sampler: Sampler,
    /// The instructions that compute, as [`DiffusionGemma::path`] tells them.
    pub path: Option<Path>,
    /// Threads that compute.
    pub threads: usize,
    /// What loading took.
    pub took: Duration,
}

impl House {
    /// Leaves the engine to the end of the process. Dropping it would wait for the running pass, which cannot be
    /// interrupted and may take many seconds: too long for whoever has just pressed ctrl-C.
    pub fn leave(self) {
        std::mem::forget(self.engine);
    }
}

/// Loads the configured model and starts its engine.
pub fn open(config: &Config) -> Result<House, CliError> {
    let begun = Instant::now();
    let threads = threads(config);
    let (model, parts) = load(config, threads)?;
    let text = Text::new(parts.text).map_err(|source| CliError::Text { name: parts.name.clone(), source })?;
    let (path, settings) = (model.path(), settings(config, model.limits()));
    let engine = Engine::start(Box::new(model), settings)?;
    let Parts { name, digest, sampler, .. } = parts;
    Ok(House { engine, text: Arc::new(text), name, digest, sampler, path, threads, took: begun.elapsed() })
}

/// What of a checkpoint is left when its weights are loaded.
pub struct Parts {
    /// The model's name.
    pub name: String,
    /// [`Checkpoint::digest`].
    pub digest: u64,
    /// Its shape.
    pub shape: crate::model::Config,
    /// What its language is made of.
    pub text: TextParts,
    /// How it wants canvases denoised.
    pub sampler: Sampler,
}

/// Loads the configured model.
pub fn load(config: &Config, threads: usize) -> Result<(DiffusionGemma, Parts), CliError> {
    load_for(config, threads, 0)
}

/// Loads the configured model for texts of at least so many positions. What it says beyond its own context means
/// nothing, but costs what it would.
pub fn load_for(config: &Config, threads: usize, positions: usize) -> Result<(DiffusionGemma, Parts), CliError> {
    // candle's own products run on rayon's pool, which takes its size from here once; a second model in one process
    // (never in the program itself) keeps the first one's.
    let _ = rayon::ThreadPoolBuilder::new().num_threads(threads).build_global();
    // Before anything is downloaded: a slip of the pen, and what this build or this machine cannot do, should be told at once.
    let quantization = quantization(config.quantize.as_deref())?;
    let source = Source::parse(config.model.as_deref())?;
    let options = options(config, threads);
    DiffusionGemma::check(&options).map_err(|source| {
        let name = config.model.as_deref().unwrap_or("inside the program").to_owned();
        CliError::Load { name, source }
    })?;
    let form = fetch::Form::beside_log(config.log_format);
    let mut checkpoint = quantized(fetch::open(&source, form)?, quantization)?;
    checkpoint.config.context = checkpoint.config.context.max(positions);
    check_memory(config, &checkpoint, &options)?;
    check_settings(config, &checkpoint, &options)?;
    let failed = |source: LoadError| CliError::Load { name: checkpoint.id.clone(), source };
    let digest = checkpoint.digest()?;
    let model = DiffusionGemma::load(&checkpoint.config, checkpoint.weights.as_ref(), &options).map_err(failed)?;
    let text = TextParts {
        tokenizer: checkpoint.tokenizer,
        template: checkpoint.template,
        end_tokens: checkpoint.generation.end_tokens.clone(),
        bos_token: checkpoint.bos_token,
        eos_token: checkpoint.eos_token,
        add_bos: None,
    };
    let sampler = sampler(&checkpoint.generation);
    Ok((model, Parts { name: checkpoint.id, digest, shape: checkpoint.config, text, sampler }))
}

fn options(config: &Config, threads: usize) -> LoadOptions {
    LoadOptions {
        device: device(config.device),
        dtype: config.dtype.map(dtype),
        threads,
        precision: precision(config.precision),
        path: instructions(config),
        kv: config.kv_dtype.map(kv_element),
    }
}

/// The quantization that was asked for.
pub fn quantization(scheme: Option<&str>) -> Result<Option<Quantization>, CliError> {
    scheme.map(|scheme| scheme.parse().map_err(CliError::Usage)).transpose()
}

/// The checkpoint, its matrices to be put into blocks if that was asked for.
pub fn quantized(checkpoint: Checkpoint, scheme: Option<Quantization>) -> Result<Checkpoint, CliError> {
    match scheme {
        None => Ok(checkpoint),
        Some(scheme) => Ok(checkpoint.quantized(scheme)?),
    }
}

/// Refuses a model that this machine cannot hold, before any of it is read: with one modest request at least, and with the
/// memory for keys and values that was configured.
fn check_memory(config: &Config, checkpoint: &Checkpoint, options: &LoadOptions) -> Result<(), CliError> {
    const MODEST: usize = 2048;
    let (Device::Cpu, Some(free)) = (config.device, checkpoint::available()) else { return Ok(()) };
    let needs = checkpoint.needs(options);
    needs.check(free, MODEST.min(needs.context), 1)?;
    if let Some(bytes) = config.kv_memory {
        needs.check_kv(free, bytes.0)?;
    }
    Ok(())
}

/// Refuses settings with which no engine would start, before any weight is read: a large model takes minutes to load.
fn check_settings(config: &Config, checkpoint: &Checkpoint, options: &LoadOptions) -> Result<(), CliError> {
    let failed = |source: LoadError| CliError::Load { name: checkpoint.id.clone(), source };
    let limits = DiffusionGemma::limits_of(&checkpoint.config, checkpoint.weights.as_ref(), options).map_err(failed)?;
    // What memory there is by itself shows when the weights are loaded.
    let kv_bytes = config.kv_memory.map_or(u64::MAX, |bytes| bytes.0);
    Ok(Settings { kv_bytes, working_bytes: None, ..settings(config, &limits) }.check(&limits)?)
}

/// Threads that compute: as configured, or one per physical core that this process may use. A second hardware thread
/// of a core shares its arithmetic units and gains nothing here.
pub fn threads(config: &Config) -> usize {
    let allowed = std::thread::available_parallelism().map_or(1, usize::from);
    config.threads.unwrap_or_else(|| num_cpus::get_physical().min(allowed).max(1))
}

fn device(device: Device) -> DeviceChoice {
    match device {
        Device::Cpu => DeviceChoice::Cpu,
        Device::Cuda(number) => DeviceChoice::Cuda(number),
        Device::Metal(number) => DeviceChoice::Metal(number),
    }
}

fn dtype(format: NumberFormat) -> WeightType {
    match format {
        NumberFormat::F32 => WeightType::F32,
        NumberFormat::Bf16 => WeightType::Bf16,
    }
}

/// The instructions that were asked for; `None` takes the best that the processor has.
pub fn instructions(config: &Config) -> Option<Path> {
    Some(match config.cpu_path? {
        InstructionPath::Portable => Path::Portable,
        InstructionPath::Avx2 => Path::Avx2,
        InstructionPath::Avx512 => Path::Avx512,
        InstructionPath::Amx => Path::Amx,
    })
}

fn precision(precision: ProductPrecision) -> Precision {
    match precision {
        ProductPrecision::Exact => Precision::Exact,
        ProductPrecision::Bf16 => Precision::Bf16,
        ProductPrecision::Bytes => Precision::Bytes,
    }
}

fn kv_element(format: NumberFormat) -> KvElement {
    match format {
        NumberFormat::F32 => KvElement::F32,
        NumberFormat::Bf16 => KvElement::Bf16,
    }
}

fn sampler(defaults: &GenerationDefaults) -> Sampler {
    Sampler {
        max_steps: defaults.max_denoising_steps,
        t_min: defaults.t_min,
        t_max: defaults.t_max,
        entropy_bound: defaults.entropy_bound,
        stability_threshold: defaults.stability_threshold,
        confidence_threshold: defaults.confidence_threshold,
    }
}

/// The scheduler's settings for a loaded model.
pub fn settings(config: &Config, limits: &Limits) -> Settings {
    let free = checkpoint::available();
    let kv_bytes = config.kv_memory.map_or_else(|| kv_share(config, limits, free), |bytes| bytes.0);
    Settings {
        encode_rows: config.encode_rows,
        max_rows_per_pass: config.max_rows_per_pass,
        max_running: config.max_running,
        queue: config.queue,
        kv_bytes,
        // Keys and values are half of what is free at most; a quarter stays for everything that nobody counts.
        working_bytes: free.filter(|_| config.device == Device::Cpu).map(|free| free / 4),
        prefix_cache_bytes: config.prefix_cache.map(|bytes| bytes.0),
        ..Settings::default()
    }
}

/// Memory for keys and values where none is configured: half of what is free once the weights are loaded, but not more than
/// 4 GiB (the pools are touched at start, and a server should not take a machine unasked), nor than the most requests that may
/// run could ever fill, twice (once for themselves, once for prefixes worth keeping).
fn kv_share(config: &Config, limits: &Limits, free: Option<u64>) -> u64 {
    const MOST: u64 = 4 << 30;
    let page = limits.page_tokens.max(1);
    let full = limits.context.div_ceil(page);
    // Sliding layers give pages back that fell out of the window, but not before what is encoded at once has been.
    let sliding = full.min(sliding_pages(limits.window, limits.canvas.max(config.encode_rows), page));
    let pages = |count: usize, bytes: u64| (count as u64).saturating_mul(bytes);
    let one = pages(full, limits.full_page_bytes).saturating_add(pages(sliding, limits.sliding_page_bytes));
    let all = one.saturating_mul(config.max_running as u64).saturating_mul(2);
    // Where the system does not tell, a modest machine is assumed.
    (free.unwrap_or(MOST) / 2).min(MOST).min(all)
}
