//! What a model needs in memory, and what this machine or container has: a server refuses early instead of being killed
//! half-way.

use std::path::{Path, PathBuf};

use super::error::CheckpointError;
use super::quantize::Quantization;
use crate::kernels::ElementType;
use crate::model::{Config, LayerKind};

/// A tensor as a file holds it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stored {
    /// Its name on the hub.
    pub name: String,
    /// Dimensions, outermost first.
    pub shape: Vec<usize>,
    /// Its type as the file's format spells it.
    pub kind: String,
    /// Its type, if it is one that can be computed with.
    pub element: Option<ElementType>,
    /// Its bytes.
    pub bytes: u64,
}

impl Stored {
    /// Numbers in it.
    pub fn numbers(&self) -> u64 {
        self.shape.iter().map(|&size| size as u64).product()
    }

    /// Whether the model's text part reads it (the vision tower and tied copies are left in the file).
    fn is_read(&self) -> bool {
        self.name.starts_with("model.decoder.") || self.name.ends_with(".layer_scalar")
    }

    /// The error for a tensor that cannot be computed with.
    pub(crate) fn unusable(&self, file: &str) -> CheckpointError {
        let why = format!("tensor {} is stored as {}, which cannot be computed with", self.name, self.kind);
        CheckpointError::unsupported(file, format!("{why}; use the bfloat16 checkpoint or a GGUF file of the model"))
    }

    /// Becomes what a quantization makes of it.
    pub(crate) fn quantize(&mut self, file: &str, scheme: Quantization, layers: usize) -> Result<(), CheckpointError> {
        let Some(target) = scheme.target(&self.name, &self.shape, layers) else { return Ok(()) };
        match self.element {
            None => return Err(self.unusable(file)),
            Some(element) if element != target && element.block().0 > 1 => {
                let why = format!("tensor {} is {} already; quantize the bfloat16 checkpoint", self.name, self.kind);
                return Err(CheckpointError::unsupported(file, why));
            }
            Some(_) => {}
        }
        let (block, bytes) = target.block();
        self.bytes = self.numbers() / block as u64 * bytes as u64;
        self.element = Some(target);
        self.kind = super::gguf::GgufType::of(target).name.to_owned();
        Ok(())
    }
}

/// Bytes that serving a checkpoint takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Needs {
    /// The weights, packed.
    pub weights: u64,
    /// Keys and values of one page, the layers that see everything.
    full_page: u64,
    /// Keys and values of one page, the sliding layers.
    sliding_page: u64,
    /// Most pages of a sliding layer that one request holds.
    sliding_pages: u64,
    /// One canvas's soft embedding.
    slot: u64,
    /// Working memory of one row.
    row: u64,
    /// Rows of one canvas.
    canvas: u64,
    /// Most positions of one request.
    pub context: usize,
}

/// Positions of one page of keys and values.
const PAGE: usize = 64;
/// Rows of prompt that may run beside the canvases.
const PROMPT_ROWS: u64 = 1024;
/// Bytes of one key or value number.
const NUMBER: usize = 4;
/// The program itself, its tokenizer, and what the allocator keeps.
const PROGRAM: u64 = 256 << 20;

impl Needs {
    /// Estimates from above, with keys and values in f32.
    pub(crate) fn of(config: &Config, tensors: &[Stored]) -> Self {
        let page = |kind| {
            let attention = config.attention(kind);
            (config.count(kind) * attention.kv_heads * attention.head_dim * 2 * PAGE * NUMBER) as u64
        };
        let wide = config.heads * config.sliding.head_dim.max(config.full.head_dim);
        let experts = config.experts.map_or(0, |it| it.top_k * (4 * it.intermediate + 3 * config.hidden));
        let numbers = 10 * config.hidden + (3 * wide).max(4 * config.intermediate + experts).max(4 * 4096);
        Self {
            weights: tensors.iter().filter(|stored| stored.is_read()).map(packed).sum(),
            full_page: page(LayerKind::Full),
            sliding_page: page(LayerKind::Sliding),
            sliding_pages: (config.window.div_ceil(PAGE) + 2) as u64,
            slot: (config.canvas * config.hidden * NUMBER) as u64,
            row: (numbers * NUMBER) as u64,
            canvas: config.canvas as u64,
            context: config.context,
        }
    }

    /// Keys and values of one request of so many positions.
    pub fn request(&self, positions: usize) -> u64 {
        let pages = positions.div_ceil(PAGE) as u64;
        pages * self.full_page + pages.min(self.sliding_pages) * self.sliding_page + self.slot
    }

    /// Everything, with so many requests of so many positions at once.
    pub fn total(&self, positions: usize, requests: usize) -> u64 {
        let requests = requests as u64;
        let rows = requests.saturating_mul(self.canvas).saturating_add(PROMPT_ROWS);
        let work = rows.saturating_mul(self.row).saturating_add(requests.saturating_mul(self.request(positions)));
        self.weights.saturating_add(PROGRAM).saturating_add(work)
    }

    /// Refuses a model that does not fit, before any of it is read.
    ///
    /// # Errors
    /// [`CheckpointError::Memory`] with the numbers and what to change.
    pub fn check(&self, free: u64, positions: usize, requests: usize) -> Result<(), CheckpointError> {
        let total = self.total(positions, requests);
        if total <= free {
            return Ok(());
        }
        let advice = if self.total(positions, 1) <= free {
            let fits = (1..requests).rev().find(|&fewer| self.total(positions, fewer) <= free).unwrap_or(1);
            format!("allow fewer requests at once ({fits} fit)")
        } else if self.total(PAGE, 1) <= free {
            let fits = (1..positions.div_ceil(PAGE)).rev().find(|&pages| self.total(pages * PAGE, 1) <= free);
            format!("allow a shorter context ({} positions fit)", fits.unwrap_or(1) * PAGE)
        } else {
            "use a smaller quantization (a Q4_K_M file, or --quantize q4_k_m) or a machine with more memory".to_owned()
        };
        Err(CheckpointError::Memory(format!(
            "the model needs {} of memory and {} are available: weights {}, {requests} request(s) of {positions} positions {}, \
             work {}; {advice}",
            gib(total),
            gib(free),
            gib(self.weights),
            gib(self.request(positions).saturating_mul(requests as u64)),
            gib(total.saturating_sub(self.weights + self.request(positions).saturating_mul(requests as u64))),
        )))
    }
}

impl Needs {
    /// Refuses so much memory for keys and values beside the weights.
    ///
    /// # Errors
    /// [`CheckpointError::Memory`] with the numbers.
    pub fn check_kv(&self, free: u64, kv: u64) -> Result<(), CheckpointError> {
        let rest = self.weights.saturating_add(PROGRAM).saturating_add((self.canvas + PROMPT_ROWS) * self.row);
        if rest.saturating_add(kv) <= free {
            return Ok(());
        }
        Err(CheckpointError::Memory(format!(
            "{} for keys and values, {} of weights and some {} for the work are more than the {} available; allow at most {} for keys \
             and values (kv_memory)",
            gib(kv),
            gib(self.weights),
            gib(rest - self.weights),
            gib(free),
            gib(free.saturating_sub(rest)),
        )))
    }
}

/// Bytes of a tensor in the form that products read: F16 is widened, everything else keeps its size.
fn packed(stored: &Stored) -> u64 {
    match stored.element {
        Some(ElementType::F16) => 2 * stored.bytes,
        _ => stored.bytes,
    }
}

/// A number of bytes for people.
pub(crate) fn gib(bytes: u64) -> String {
    match bytes {
        0..0x10_0000 => format!("{:.1} KiB", bytes as f64 / 1024.0),
        0x10_0000..0x4000_0000 => format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20)),
        _ => format!("{:.2} GiB", bytes as f64 / f64::from(1 << 30)),
    }
}

/// Bytes this process may still take: what the machine has free, or its control groups allow where that is less. `None` where
/// the system does not say (anything but Linux).
pub fn available() -> Option<u64> {
    let machine = machine(&read("/proc/meminfo")?)?;
    Some(groups().into_iter().chain([machine]).min().unwrap_or(machine))
}

fn read(path: impl AsRef<Path>) -> Option<String> {
    std::fs::read_to_string(path).ok()
}

/// `MemAvailable` of /proc/meminfo.
fn machine(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kibibytes.checked_mul(1024)
}

/// What each control group from this process's own up to the root has left.
fn groups() -> Vec<u64> {
    let root = Path::new("/sys/fs/cgroup");
    let own = read("/proc/self/cgroup").unwrap_or_default();
    let mut left = Vec::new();
    for line in own.lines() {
        let mut parts = line.splitn(3, ':');
        let (Some(_), Some(controllers), Some(path)) = (parts.next(), parts.next(), parts.next()) else { continue };
        let (base, limit, used, cache) = match controllers {
            "" => (root.to_owned(), "memory.max", "memory.current", "file"),
            list if list.split(',').any(|name| name == "memory") => {
                (root.join("memory"), "memory.limit_in_bytes", "memory.usage_in_bytes", "total_cache")
            }
            _ => continue,
        };
        // Inside a container the group's path may be the host's; its own group is then the root that it sees.
        let mut folders: Vec<PathBuf> = vec![base.clone()];
        let mut folder = base.clone();
        for part in Path::new(path).components().filter(|part| matches!(part, std::path::Component::Normal(_))) {
            folder.push(part);
            folders.push(folder.clone());
        }
        left.extend(folders.iter().filter_map(|folder| {
            let stat = read(folder.join("memory.stat")).unwrap_or_default();
            group(&read(folder.join(limit))?, &read(folder.join(used))?, &stat, cache)
        }));
    }
    left
}

/// What a group has left, its file cache counted as free (it is given up when memory is short); `None` without a limit.
fn group(limit: &str, used: &str, stat: &str, cache: &str) -> Option<u64> {
    let limit: u64 = limit.trim().parse().ok()?;
    let used: u64 = used.trim().parse().ok()?;
    let cached = stat.lines().find_map(|line| line.strip_prefix(cache)?.strip_prefix(' ')?.trim().parse().ok());
    Some(limit.saturating_sub(used.saturating_sub(cached.unwrap_or(0))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_systems_words_are_read() {
        assert_eq!(machine("MemTotal: 9 kB\nMemAvailable:   2048 kB\n"), Some(2 << 20));
        assert_eq!(machine("MemTotal: 9 kB\n"), None);
        assert_eq!(machine("MemAvailable: many\n"), None);
        assert_eq!(group("1000\n", "400\n", "", "file"), Some(600));
        assert_eq!(group("1000\n", "400\n", "anon 100\nfile 300\nfile_mapped 20\n", "file"), Some(900));
        assert_eq!(group("1000\n", "1400\n", "", "file"), Some(0));
        assert_eq!(group("max\n", "400\n", "", "file"), None);
    }

    fn needs() -> Needs {
        let checkpoint = super::super::open(&super::super::Source::Demo).unwrap();
        checkpoint.needs()
    }

    #[test]
    fn a_refusal_says_what_would_fit() {
        let needs = needs();
        let (context, many) = (needs.context, 64);
        needs.check(needs.total(context, many), context, many).unwrap();
        let say = |free| needs.check(free, context, many).unwrap_err().to_string();
        let fewer = say(needs.total(context, 9));
        assert!(fewer.contains("(9 fit)"), "{fewer}");
        let shorter = say(needs.total(PAGE * 3, 1));
        assert!(shorter.contains("(192 positions fit)"), "{shorter}");
        let smaller = say(needs.weights);
        assert!(
            smaller.contains("smaller quantization") && smaller.contains("GiB") | smaller.contains("MiB"),
            "{smaller}"
        );
    }

    #[test]
    fn quantizing_makes_it_smaller() {
        let demo = || super::super::open(&super::super::Source::Demo).unwrap();
        let (plain, small) = (demo().needs(), demo().quantized(Quantization::Q4_0).unwrap().needs());
        assert!(small.weights < plain.weights / 2, "{} {}", small.weights, plain.weights);
        assert_eq!(plain.request(100), small.request(100));
        let twice =
            demo().quantized(Quantization::Q4_0).unwrap().quantized(Quantization::Q8_0).unwrap_err().to_string();
        assert!(twice.contains("Q4_0 already"), "{twice}");
    }
}
