//! The command line of `canvasd bench`.

use std::path::PathBuf;

use clap::Args;

use super::step::Statistics;
use crate::cli::options::ModelOptions;

/// Options of `canvasd bench`.
#[derive(Debug, Args)]
pub struct Arguments {
    #[command(flatten)]
    pub model: ModelOptions,

    /// Measure the server at this address instead of an engine in this process, such as http://127.0.0.1:8000; the key
    /// for it comes from CANVASD_API_KEY.
    #[arg(long, value_name = "URL", conflicts_with_all = ["model", "device", "dtype", "threads"])]
    pub url: Option<String>,

    /// How many requests run at once, one measurement for each. --soak and --efforts take the largest.
    #[arg(long, value_name = "N,N,…", value_delimiter = ',', default_value = "1,2,4,8,16,32", value_parser = count)]
    pub concurrency: Vec<usize>,

    /// Requests per place at once: at concurrency 4 and 6 here, 24 requests are measured.
    #[arg(long, value_name = "N", default_value = "6", value_parser = count)]
    pub requests: usize,

    /// Requests in all, the same ones at each concurrency, so that the slowest of one measurement are asked the same as
    /// those of another.
    #[arg(long, value_name = "N", conflicts_with = "requests", value_parser = count)]
    pub total: Option<usize>,

    /// Most tokens of one answer.
    #[arg(long, value_name = "N", default_value = "256", value_parser = count)]
    pub max_tokens: usize,

    /// Seed of the first request; each further one takes the next.
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub seed: u64,

    /// Most canvases denoised at once [default: as configured].
    #[arg(long, value_name = "N", value_parser = count)]
    pub max_running: Option<usize>,

    /// Time bare passes of the model, without scheduler and text, instead of requests.
    #[arg(long, group = "mode", conflicts_with_all = ["url", "plot"])]
    pub step: bool,

    /// With --step: canvases in one pass, one measurement for each.
    #[arg(long, value_name = "N,N,…", value_delimiter = ',', default_value = "1,2,4", value_parser = count)]
    pub canvases: Vec<usize>,

    /// With --step: tokens before the canvas, one measurement for each; what the context cannot hold is left out.
    #[arg(long, value_name = "N,N,…", value_delimiter = ',', default_value = "0,512,2048,8192")]
    pub prefix: Vec<usize>,

    /// With --step: how spread the vocabulary's probabilities are, one measurement for each.
    #[arg(long, value_name = "KIND,…", value_delimiter = ',', default_value = "flat,peaked")]
    pub statistics: Vec<Statistics>,

    /// With --step: tokens of a prompt whose encoding is timed, in chunks of 1,024; 0 for none.
    #[arg(long, value_name = "N", default_value = "2048")]
    pub encode: usize,

    /// With --step: passes timed per measurement. With --intrude: long prompts per budget. With --efforts: seeds.
    #[arg(long, value_name = "N", default_value = "5", value_parser = count)]
    pub repeats: usize,

    /// Run so many short requests of which a third is given up at a random moment, and watch the memory.
    #[arg(long, value_name = "N", group = "mode", conflicts_with = "plot", value_parser = count)]
    pub soak: Option<usize>,

    /// Measure what a prompt of so many tokens costs eight requests that are running when it arrives.
    #[arg(long, value_name = "TOKENS", group = "mode", conflicts_with_all = ["url", "plot"], value_parser = count)]
    pub intrude: Option<usize>,

    /// With --intrude: prompt rows per pass, one measurement for each [default: as configured].
    #[arg(long, value_name = "N,N,…", value_delimiter = ',', value_parser = count)]
    pub encode_rows: Vec<usize>,

    /// Measure steps, speed and right answers of each effort on the questions in this file: a JSON list of objects with
    /// `messages` (or `prompt`) and what a right answer holds: all of `expect`, at least one of `any`.
    #[arg(long, value_name = "FILE", group = "mode", conflicts_with = "plot")]
    pub efforts: Option<PathBuf>,

    /// Print the result as JSON on standard output instead of a table.
    #[arg(long)]
    pub json: bool,

    /// Draw the curve into this file, as SVG.
    #[arg(long, value_name = "FILE")]
    pub plot: Option<PathBuf>,
}

fn count(text: &str) -> Result<usize, String> {
    text.parse()
        .ok()
        .filter(|count| (1..=100_000).contains(count))
        .ok_or_else(|| "a number from 1 to 100000 is wanted".into())
}
