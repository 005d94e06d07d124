//! The command line of `canvasd bench`.

use std::path::PathBuf;

use clap::Args;

use super::step::Statistics;
use crate::cli::options::ModelOptions;

/// Beside what the options of --step and of --intrude have no effect. `requires` alone would not do: clap waives it where
/// what is required conflicts with what is there.
const BESIDE_STEP: [&str; 4] = ["url", "soak", "intrude", "efforts"];
const BESIDE_INTRUDE: [&str; 4] = ["url", "step", "soak", "efforts"];

/// What a server at a URL decides for itself.
const OF_THE_ENGINE: [&str; 8] =
    ["model", "device", "dtype", "quantize", "precision", "kv_dtype", "threads", "max_running"];

/// Options of `canvasd bench`. One that would have no effect beside another is refused.
#[derive(Debug, Args)]
pub struct Arguments {
    #[command(flatten)]
    pub model: ModelOptions,

    /// Measure the server at this address instead of an engine in this process, such as http://127.0.0.1:8000; the key
    /// for it comes from CANVASD_API_KEY.
    #[arg(long, value_name = "URL", conflicts_with_all = OF_THE_ENGINE)]
    pub url: Option<String>,

    /// How many requests run at once, one measurement for each. --soak and --efforts take the largest.
    #[arg(long, value_name = "N,N,…", value_delimiter = ',', default_value = "1,2,4,8,16,32", value_parser = count)]
    #[arg(conflicts_with_all = ["step", "intrude"])]
    pub concurrency: Vec<usize>,

    /// Requests per place at once: at concurrency 4 and 6 here, 24 requests are measured.
    #[arg(long, value_name = "N", default_value = "6", conflicts_with = "mode", value_parser = count)]
    pub requests: usize,

    /// Requests in all, the same ones at each concurrency, so that the slowest of one measurement are asked the same as
    /// those of another.
    #[arg(long, value_name = "N", conflicts_with_all = ["requests", "mode"], value_parser = count)]
    pub total: Option<usize>,

    /// Most tokens of one answer.
    #[arg(long, value_name = "N", default_value = "256", value_parser = count)]
    #[arg(conflicts_with_all = ["step", "soak", "intrude"])]
    pub max_tokens: usize,

    /// Seed of the first request; each further one takes the next.
    #[arg(long, value_name = "N", default_value_t = 1, conflicts_with_all = ["step", "intrude", "efforts"])]
    pub seed: u64,

    /// Most canvases denoised at once [default: as configured].
    #[arg(long, value_name = "N", conflicts_with = "step", value_parser = count)]
    pub max_running: Option<usize>,

    /// Time bare passes of the model, without scheduler and text, instead of requests.
    #[arg(long, group = "mode", conflicts_with = "url")]
    pub step: bool,

    /// With --step: canvases in one pass, one measurement for each.
    #[arg(long, value_name = "N,N,…", value_delimiter = ',', default_value = "1,2,4", value_parser = count)]
    #[arg(requires = "step", conflicts_with_all = BESIDE_STEP)]
    pub canvases: Vec<usize>,

    /// With --step: tokens before the canvas, one measurement for each; what the context cannot hold is left out.
    #[arg(long, value_name = "N,N,…", value_delimiter = ',', default_value = "0,512,2048,8192")]
    #[arg(requires = "step", conflicts_with_all = BESIDE_STEP)]
    pub prefix: Vec<usize>,

    /// With --step: how spread the vocabulary's probabilities are, one measurement for each.
    #[arg(long, value_name = "KIND,…", value_delimiter = ',', default_value = "flat,peaked")]
    #[arg(requires = "step", conflicts_with_all = BESIDE_STEP)]
    pub statistics: Vec<Statistics>,

    /// With --step: tokens of a prompt whose encoding is timed, in chunks of 1,024; 0 for none.
    #[arg(long, value_name = "N", default_value = "2048")]
    #[arg(requires = "step", conflicts_with_all = BESIDE_STEP)]
    pub encode: usize,

    /// With --step: passes timed per measurement. With --intrude: long prompts per budget. With --efforts: seeds.
    #[arg(long, value_name = "N", default_value = "5", requires = "mode", conflicts_with = "soak", value_parser = count)]
    pub repeats: usize,

    /// Run so many short requests of which a third is given up at a random moment, and watch the memory.
    #[arg(long, value_name = "N", group = "mode", value_parser = count)]
    pub soak: Option<usize>,

    /// Measure what a prompt of so many tokens costs eight requests that are running when it arrives.
    #[arg(long, value_name = "TOKENS", group = "mode", conflicts_with = "url", value_parser = count)]
    pub intrude: Option<usize>,

    /// With --intrude: prompt rows per pass, one measurement for each [default: as configured].
    #[arg(long, value_name = "N,N,…", value_delimiter = ',', value_parser = count)]
    #[arg(requires = "intrude", conflicts_with_all = BESIDE_INTRUDE)]
    pub encode_rows: Vec<usize>,

    /// Measure steps, speed and right answers of each effort on the questions in this file: a JSON list of objects with
    /// `messages` (or `prompt`) and what a right answer holds: all of `expect`, at least one of `any`.
    #[arg(long, value_name = "FILE", group = "mode")]
    pub efforts: Option<PathBuf>,

    /// Print the result as JSON on standard output instead of a table.
    #[arg(long)]
    pub json: bool,

    /// Draw the curve into this file, as SVG.
    #[arg(long, value_name = "FILE", conflicts_with = "mode")]
    pub plot: Option<PathBuf>,
}

fn count(text: &str) -> Result<usize, String> {
    text.parse()
        .ok()
        .filter(|count| (1..=100_000).contains(count))
        .ok_or_else(|| "a number from 1 to 100000 is wanted".into())
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use clap::error::ErrorKind;

    use super::*;

    #[derive(Debug, Parser)]
    struct Bench {
        #[command(flatten)]
        arguments: Arguments,
    }

    fn parse(line: &str) -> Result<Arguments, clap::Error> {
        let words = std::iter::once("bench").chain(line.split_whitespace());
        Bench::try_parse_from(words).map(|bench| bench.arguments)
    }

    #[test]
    fn what_has_an_effect_is_taken() {
        for line in [
            "",
            "--model m --quantize q4_0 --precision exact --kv-dtype f32 --threads 1 --max-running 4",
            "--concurrency 1,2 --requests 3 --max-tokens 9 --seed 2 --plot x.svg --json",
            "--url http://h --concurrency 1 --total 3 --max-tokens 9 --seed 2 --plot x.svg --config c.toml --log info",
            "--step --quantize q4_0 --canvases 1 --prefix 0 --statistics flat --encode 0 --repeats 2 --json",
            "--soak 10 --concurrency 4 --seed 2 --max-running 4",
            "--soak 10 --concurrency 4 --seed 2 --url http://h",
            "--intrude 3000 --encode-rows 256,512 --repeats 8 --max-running 8",
            "--efforts f.json --concurrency 8 --repeats 5 --max-tokens 64 --url http://h",
        ] {
            parse(line).unwrap_or_else(|error| panic!("{line}: {error}"));
        }
        let arguments = parse("--step").unwrap();
        assert_eq!((arguments.canvases, arguments.encode, arguments.repeats), (vec![1, 2, 4], 2048, 5));
    }

    #[test]
    fn what_would_have_no_effect_is_refused() {
        let server =
            ["--model m", "--device cpu", "--dtype f32", "--quantize q4_0", "--precision exact", "--kv-dtype f32"];
        let sweep = ["--requests 3", "--total 3", "--plot x.svg"];
        let asked = ["--concurrency 1", "--max-tokens 9", "--seed 2"];
        let beside = |mode: &'static str, options: &[&'static str]| -> Vec<String> {
            options.iter().map(|option| format!("{mode} {option}")).collect()
        };
        for line in [
            beside("--url http://h", &server),
            beside("--url http://h", &["--threads 1", "--max-running 4", "--step", "--intrude 9"]),
            beside("--step", &sweep),
            beside("--step", &asked),
            beside("--step", &["--max-running 4", "--soak 9", "--intrude 9", "--efforts f"]),
            beside("--intrude 9", &sweep),
            beside("--intrude 9", &asked),
            beside("--soak 9", &sweep),
            beside("--soak 9", &["--max-tokens 9", "--repeats 2"]),
            beside("--efforts f", &sweep),
            beside("--efforts f", &["--seed 2"]),
        ]
        .concat()
        {
            assert_eq!(parse(&line).expect_err(&line).kind(), ErrorKind::ArgumentConflict, "{line}");
        }
        let steps = ["--canvases 1", "--prefix 0", "--statistics flat", "--encode 0"];
        for mode in ["--url http://h", "--soak 9", "--intrude 9", "--efforts f"] {
            for line in beside(mode, &steps) {
                assert_eq!(parse(&line).expect_err(&line).kind(), ErrorKind::ArgumentConflict, "{line}");
            }
        }
        for mode in ["--url http://h", "--step", "--soak 9", "--efforts f"] {
            let line = format!("{mode} --encode-rows 256");
            assert_eq!(parse(&line).expect_err(&line).kind(), ErrorKind::ArgumentConflict, "{line}");
        }
        for line in steps.iter().chain(&["--encode-rows 256", "--repeats 2", "--url http://h --repeats 2"]) {
            assert_eq!(parse(line).expect_err(line).kind(), ErrorKind::MissingRequiredArgument, "{line}");
        }
    }
}
