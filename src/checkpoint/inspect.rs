//! What a checkpoint is, for people: `canvasd inspect`.

use std::collections::BTreeMap;
use std::fmt;

use super::Checkpoint;
use super::memory::{Needs, gib};
use crate::model::{Config, LayerKind, LoadOptions, Precision};

/// Numbers of requests and positions that the memory table shows.
const REQUESTS: [usize; 3] = [1, 4, 16];
const POSITIONS: [usize; 3] = [2048, 8192, 32_768];

/// A description of a checkpoint; `Display` writes it.
#[derive(Debug)]
pub struct Inspection {
    id: String,
    config: Config,
    sampling: String,
    vocabulary: usize,
    template: bool,
    /// Tensors, numbers and bytes by type.
    types: BTreeMap<String, (usize, u64, u64)>,
    needs: Needs,
    free: Option<u64>,
    threads: usize,
}

impl Inspection {
    /// Describes a checkpoint without reading its tensors, and what serving it in the default precision takes; `free` is the memory at hand, as [`super::available()`] tells it.
    pub fn of(checkpoint: &Checkpoint, free: Option<u64>) -> Self {
        let mut types = BTreeMap::new();
        for stored in &checkpoint.tensors {
            let entry = types.entry(stored.kind.clone()).or_insert((0, 0, 0));
            *entry = (entry.0 + 1, entry.1 + stored.numbers(), entry.2 + stored.bytes);
        }
        let g = &checkpoint.generation;
        Self {
            id: checkpoint.id.clone(),
            config: checkpoint.config.clone(),
            sampling: format!(
                "at most {} steps, temperature {} to {}, entropy bound {}, end tokens {:?}",
                g.max_denoising_steps, g.t_max, g.t_min, g.entropy_bound, g.end_tokens
            ),
            vocabulary: checkpoint.tokenizer.get_vocab_size(true),
            template: checkpoint.template.is_some(),
            types,
            needs: checkpoint.needs(&LoadOptions { precision: Precision::Bytes, ..LoadOptions::default() }),
            free,
            threads: std::thread::available_parallelism().map_or(1, usize::from),
        }
    }
}

impl fmt::Display for Inspection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let config = &self.config;
        writeln!(f, "{}", self.id)?;
        writeln!(
            f,
            "  architecture   DiffusionGemma, text{}",
            if config.images.is_some() { " (image tokens known)" } else { "" }
        )?;
        writeln!(f, "  layers         {}: {}", config.layers.len(), pattern(&config.layers))?;
        writeln!(f, "  width          {}, MLP {}", config.hidden, config.intermediate)?;
        for (label, kind) in [("sliding", LayerKind::Sliding), ("full", LayerKind::Full)] {
            let it = config.attention(kind);
            if config.count(kind) > 0 {
                let (heads, kv, size, theta) = (config.heads, it.kv_heads, it.head_dim, it.rope.theta);
                writeln!(f, "  {label:<9}      {heads} heads of {size}, {kv} key/value heads, rotary base {theta}")?;
            }
        }
        match &config.experts {
            Some(experts) => {
                let (count, each, top) = (experts.count, experts.intermediate, experts.top_k);
                writeln!(f, "  experts        {count} of {each}, {top} per token")?;
            }
            None => writeln!(f, "  experts        none (dense)")?,
        }
        let (canvas, context, window) = (config.canvas, config.context, config.window);
        writeln!(f, "  canvas         {canvas} tokens; context {context}, window {window}")?;
        writeln!(f, "  vocabulary     {} (tokenizer {})", config.vocabulary, self.vocabulary)?;
        writeln!(f, "  chat template  {}", if self.template { "yes" } else { "none" })?;
        writeln!(f, "  sampling       {}", self.sampling)?;
        writeln!(f, "\n  {:<8} {:>8} {:>16} {:>12}", "type", "tensors", "parameters", "bytes")?;
        let mut all = (0, 0, 0);
        for (kind, &(tensors, numbers, bytes)) in &self.types {
            writeln!(f, "  {kind:<8} {tensors:>8} {numbers:>16} {:>12}", gib(bytes))?;
            all = (all.0 + tensors, all.1 + numbers, all.2 + bytes);
        }
        writeln!(f, "  {:<8} {:>8} {:>16} {:>12}", "all", all.0, all.1, gib(all.2))?;
        self.memory(f)
    }
}

impl Inspection {
    /// Needed at each context length and number of requests, marked where it is more than there is.
    fn memory(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let free = self.free.map_or_else(|| "unknown".to_owned(), gib);
        writeln!(f, "\n  memory to serve it on the CPU (available here: {free}, {} threads)", self.threads)?;
        write!(f, "  {:<22}", "positions per request")?;
        for requests in REQUESTS {
            write!(f, "{:>16}", format!("{requests} at once"))?;
        }
        writeln!(f)?;
        let context = self.needs.context;
        let lengths = POSITIONS.into_iter().filter(|&length| length < context).chain([context]);
        for positions in lengths {
            write!(f, "  {positions:<22}")?;
            for requests in REQUESTS {
                let total = self.needs.total(positions, requests);
                let mark = if self.free.is_some_and(|free| total > free) { " ✗" } else { "" };
                write!(f, "{:>16}", format!("{}{mark}", gib(total)))?;
            }
            writeln!(f)?;
        }
        let Some(free) = self.free else { return Ok(()) };
        let verdict = match self.needs.check(free, context.min(POSITIONS[0]), 1) {
            Ok(()) => format!("it can be served here: {}", self.reach(free)),
            Err(error) => format!("it cannot be served here: {error}"),
        };
        writeln!(f, "\n  {verdict}")
    }
}

impl Inspection {
    /// The longest request and the most short ones that fit.
    fn reach(&self, free: u64) -> String {
        let (needs, context) = (&self.needs, self.needs.context);
        let short = context.min(POSITIONS[0]);
        let fits = |positions, requests| needs.total(positions, requests) <= free;
        // Both grow steadily, so the border is found by halving.
        let longest = border(context.div_ceil(64), |pages| fits(pages * 64, 1)) * 64;
        let most = border(1024, |requests| fits(short, requests));
        let or_more = if most == 1024 { " or more" } else { "" };
        format!("one request of up to {} positions, or {most}{or_more} requests of {short}", longest.min(context))
    }
}

/// The largest number from 1 to `most` that is good; 1 is, and so is every number below a good one.
fn border(most: usize, good: impl Fn(usize) -> bool) -> usize {
    let (mut low, mut high) = (1, most.max(1));
    while low < high {
        let middle = low + (high - low).div_ceil(2);
        if good(middle) { low = middle } else { high = middle - 1 }
    }
    low
}

/// `S` for a sliding layer, `F` for a full one, repeats shortened.
fn pattern(layers: &[LayerKind]) -> String {
    let mut runs: Vec<(char, usize)> = Vec::new();
    for kind in layers {
        let letter = if *kind == LayerKind::Sliding { 'S' } else { 'F' };
        match runs.last_mut() {
            Some((last, count)) if *last == letter => *count += 1,
            _ => runs.push((letter, 1)),
        }
    }
    let words =
        runs.iter().map(|(letter, count)| if *count > 1 { format!("{count}{letter}") } else { letter.to_string() });
    format!("{} (S sliding, F full)", words.collect::<Vec<_>>().join(" "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::{Source, open};

    #[test]
    fn the_demo_described() {
        let demo = open(&Source::Demo).unwrap();
        let text = Inspection::of(&demo, Some(8 << 30)).to_string();
        let parameters: u64 = demo.tensors.iter().map(|stored| stored.numbers()).sum();
        for expected in
            ["canvasd-demo", "BF16", "at once", "it can be served here", "S sliding", &parameters.to_string()]
        {
            assert!(text.contains(expected), "{expected}:\n{text}");
        }
        let small = Inspection::of(&demo, Some(1 << 20)).to_string();
        assert!(small.contains('✗') && small.contains("cannot be served here"), "{small}");
        assert!(Inspection::of(&demo, None).to_string().contains("unknown"));
    }

    #[test]
    fn what_fits_is_found() {
        for wanted in [1, 2, 17, 99, 100] {
            assert_eq!(border(100, |number| number <= wanted), wanted);
        }
        let demo = open(&Source::Demo).unwrap();
        let needs = demo.needs(&LoadOptions::default());
        let (context, short) = (needs.context, needs.context.min(POSITIONS[0]));
        for (free, reach) in [
            (needs.total(context, 1), format!("one request of up to {context} positions, or ")),
            (needs.total(short, 7), format!(", or 7 requests of {short}")),
        ] {
            let text = Inspection::of(&demo, Some(free)).to_string();
            assert!(text.contains(&reach), "{text}");
        }
    }

    #[test]
    fn runs_of_layers() {
        use LayerKind::{Full as F, Sliding as S};
        assert_eq!(pattern(&[S, S, F, S, F]), "2S F S F (S sliding, F full)");
    }
}
