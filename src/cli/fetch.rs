//! `canvasd fetch`: downloads a model ahead of time; and how every command shows a download.

use std::io::{IsTerminal, Write};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use clap::Args;

use super::CliError;
use crate::checkpoint::{self, Checkpoint, Hub, HubName, Phase, Progress, Source};
use crate::config::LogFormat;

/// Options of `canvasd fetch`.
#[derive(Debug, Args)]
#[command(after_help = "The cache is that of the hub's own tools: HF_HUB_CACHE, HF_HOME, HF_TOKEN, HF_ENDPOINT and \
                        HF_HUB_OFFLINE are honoured.")]
pub struct Arguments {
    /// A name on the hub: owner/name, owner/name@revision, owner/name:file.gguf or owner/name:Q4_K_M.
    #[arg(value_name = "MODEL")]
    model: String,

    /// Read what the cache has already, and fetch anew what is damaged.
    #[arg(long)]
    verify: bool,
}

/// Downloads what is missing and prints where it is.
pub fn run(arguments: &Arguments) -> Result<(), CliError> {
    let Source::Hub(name) = Source::parse(Some(&arguments.model)).map_err(CliError::Fetch)? else {
        let text = format!("{} is here already: only names on the hub (owner/name) are fetched", arguments.model);
        return Err(CliError::Usage(text));
    };
    let display = Display::new(&name, Form::plain());
    let (hub, show) = (Hub::from_env(), |progress: &Progress| display.show(progress));
    let found = if arguments.verify { hub.mend(&name, &show) } else { hub.fetch(&name, &show) };
    let found = found.map_err(CliError::Fetch)?;
    let path = match found {
        Source::Folder(path) | Source::Gguf(path) => path,
        Source::Demo | Source::Hub(_) => return Ok(()),
    };
    writeln!(std::io::stdout(), "{}", path.display()).map_err(CliError::io("the path cannot be printed"))
}

/// Opens a checkpoint; what is missing of a name on the hub is downloaded, and shown.
pub fn open(source: &Source, form: Form) -> Result<Checkpoint, CliError> {
    let Source::Hub(name) = source else { return Ok(checkpoint::open(source)?) };
    let display = Display::new(name, form);
    let found = Hub::from_env().locate(name, &|progress| display.show(progress)).map_err(CliError::Fetch)?;
    Ok(Checkpoint { id: name.repo.clone(), ..checkpoint::open(&found)? })
}

/// The form in which a download is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// A bar on a terminal.
    Bar,
    /// A line on standard error now and then.
    Lines,
    /// An event of the log now and then.
    Events,
}

impl Form {
    /// That of a command that keeps no log.
    pub fn plain() -> Form {
        if std::io::stderr().is_terminal() { Form::Bar } else { Form::Lines }
    }

    /// That of a command whose log goes to standard error too: what reads the log expects its lines alone, and no more of
    /// them than its level lets through. A bar is for a person who reads along.
    pub fn beside_log(format: LogFormat) -> Form {
        match (Form::plain(), format) {
            (Form::Bar, LogFormat::Text) => Form::Bar,
            _ => Form::Events,
        }
    }
}

/// Shows a download.
struct Display<'a> {
    name: &'a HubName,
    form: Form,
    begun: Instant,
    /// What a log was last told, and when.
    told: Mutex<Option<(u64, Instant)>>,
    /// Whether the terminal's cursor stands behind a line that is not ended.
    open: AtomicBool,
}

/// The longest silence in a log while bytes arrive.
const SILENCE: Duration = Duration::from_secs(60);

impl<'a> Display<'a> {
    fn new(name: &'a HubName, form: Form) -> Self {
        Self { name, form, begun: Instant::now(), told: Mutex::new(None), open: AtomicBool::new(false) }
    }

    /// Shows how far it is. Progress that cannot be written is no reason to stop a download.
    fn show(&self, progress: &Progress) {
        match self.form {
            Form::Bar => self.draw(progress),
            Form::Lines => self.when_due(progress, |elapsed| super::tell(line(progress, elapsed))),
            Form::Events => self.when_due(progress, |_| self.log(progress)),
        }
    }

    fn draw(&self, progress: &Progress) {
        let width = terminal_size::terminal_size().map_or(80, |(width, _)| usize::from(width.0));
        let done = progress.phase == Phase::Done;
        let end = if done { "\n" } else { "" };
        let mut err = std::io::stderr().lock();
        self.open.store(!done, Ordering::Relaxed);
        let _ = write!(err, "\r\x1b[K{}{end}", drawn(progress, self.begun.elapsed(), width)).and_then(|()| err.flush());
    }

    /// Tells a log of each tenth, of the end, and that it still goes on where that takes long.
    fn when_due(&self, progress: &Progress, say: impl FnOnce(Duration)) {
        let tenths = progress.done.saturating_mul(10) / progress.total.max(1);
        let Ok(mut told) = self.told.lock() else { return };
        let due = told.is_none_or(|(last, when)| last != tenths || when.elapsed() >= SILENCE);
        if due || progress.phase == Phase::Done {
            *told = Some((tenths, Instant::now()));
            say(self.begun.elapsed());
        }
    }

    fn log(&self, progress: &Progress) {
        let mib = |bytes: u64| bytes >> 20;
        let what = match progress.phase {
            Phase::Transfer => "downloading",
            Phase::Verify => "checking sums",
            Phase::Done => "downloaded",
        };
        tracing::info!(model = %self.name, done_mib = mib(progress.done), total_mib = mib(progress.total), "{what}");
    }
}

impl Drop for Display<'_> {
    fn drop(&mut self) {
        // An error comes next: it wants a line of its own.
        if self.open.load(Ordering::Relaxed) {
            let _ = writeln!(std::io::stderr());
        }
    }
}

/// One line: share, amounts, speed and what is left; shorter than 80 characters.
fn line(progress: &Progress, elapsed: Duration) -> String {
    let (done, total) = amounts(progress.done, progress.total);
    let share = progress.done.saturating_mul(100).checked_div(progress.total).unwrap_or(100);
    match progress.phase {
        Phase::Done => format!("{total} complete"),
        Phase::Verify => format!("{share:3} %  {done} of {total}, checking sums"),
        Phase::Transfer => {
            let continued = match progress.resumed {
                0 => String::new(),
                bytes => format!(", {} of it from before", amounts(bytes, bytes).1),
            };
            format!("{share:3} %  {done} of {total}{continued}{}", speed(progress, elapsed))
        }
    }
}

/// Speed since the start and the time that is left at this speed, once there is something to tell.
fn speed(progress: &Progress, elapsed: Duration) -> String {
    let seconds = elapsed.as_secs_f64();
    let came = progress.done.saturating_sub(progress.begun_at) as f64;
    if seconds < 1.0 || came == 0.0 {
        return String::new();
    }
    let left = progress.total.saturating_sub(progress.done) as f64 / came * seconds;
    let left = match left {
        ..120.0 => format!("{left:.0} s"),
        ..7200.0 => format!("{:.0} min", left / 60.0),
        _ => format!("{:.1} h", left / 3600.0),
    };
    format!(", {:.1} MiB/s, {left} left", came / seconds / f64::from(1 << 20))
}

/// Two amounts, the second with its unit.
fn amounts(done: u64, total: u64) -> (String, String) {
    let (unit, name) = if total >= 1 << 30 { (1u64 << 30, "GiB") } else { (1 << 20, "MiB") };
    let digits = if unit == 1 << 30 { 2 } else { 1 };
    let of = |bytes: u64| format!("{:.digits$}", bytes as f64 / unit as f64);
    (of(done), format!("{} {name}", of(total)))
}

/// The line with a bar before it, as wide as the terminal.
fn drawn(progress: &Progress, elapsed: Duration, width: usize) -> String {
    let line = line(progress, elapsed);
    // Brackets, a space, and the last column, which would wrap the line.
    let room = width.saturating_sub(line.chars().count() + 4).min(40);
    if room < 5 || progress.phase == Phase::Done {
        return line.chars().take(width.saturating_sub(1)).collect();
    }
    let full = if progress.total > 0 { progress.done as f64 / progress.total as f64 } else { 1.0 };
    let full = ((full * room as f64) as usize).min(room);
    format!("[{}{}] {line}", "#".repeat(full), "-".repeat(room - full))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_shown() {
        let at = |done, phase| Progress { done, total: 4 << 30, resumed: 1 << 30, begun_at: 1 << 30, phase };
        let seconds = Duration::from_secs;
        assert_eq!(
            line(&at(2 << 30, Phase::Transfer), seconds(10)),
            " 50 %  2.00 of 4.00 GiB, 1.00 GiB of it from before, 102.4 MiB/s, 20 s left"
        );
        assert_eq!(
            line(&at(1 << 30, Phase::Transfer), seconds(0)),
            " 25 %  1.00 of 4.00 GiB, 1.00 GiB of it from before"
        );
        assert_eq!(line(&at(4 << 30, Phase::Verify), seconds(9)), "100 %  4.00 of 4.00 GiB, checking sums");
        assert_eq!(line(&at(4 << 30, Phase::Done), seconds(9)), "4.00 GiB complete");
        let small = Progress { done: 0, total: 3 << 20, resumed: 0, begun_at: 0, phase: Phase::Transfer };
        assert_eq!(drawn(&small, seconds(0), 60), format!("[{}]   0 %  0.0 of 3.0 MiB", "-".repeat(35)));
        let half = Progress { done: 3 << 19, ..small };
        assert_eq!(drawn(&half, seconds(0), 35), "[#####-----]  50 %  1.5 of 3.0 MiB");
        for width in [0, 1, 10, 34, 80, 500] {
            assert!(drawn(&at(1 << 31, Phase::Transfer), seconds(3), width).chars().count() < width.max(1));
        }
    }
}
