//! `canvasd generate`: one answer, without a server. On a terminal the canvas can be seen settling; into a pipe goes
//! plain text.

use std::io::{IsTerminal, Read, Write};

use clap::Args;
use tokio::sync::watch;

use super::options::{self, ModelOptions};
use super::screen::Screen;
use super::signals::Signals;
use super::wire::{self, House};
use super::{CliError, block_on};
use crate::prompt::{Chat, Delta, Dialect, Message, Prompt, Role, Rules, Text, TextReader, Thinking};
use crate::scheduler::{self, Choice, Draft, Drafts, Event, Job, Phase, Reader};

/// Options of `canvasd generate`.
#[derive(Debug, Args)]
pub struct Arguments {
    /// What to ask; read from standard input where it is not given.
    prompt: Option<String>,

    #[command(flatten)]
    model: ModelOptions,

    /// What the model is told before the question.
    #[arg(long, value_name = "TEXT")]
    system: Option<String>,

    /// Same seed, same text [default: another one each time, but 0 with --temperature 0].
    #[arg(long, value_name = "N")]
    seed: Option<u64>,

    /// Most tokens of the answer [default: what the context holds].
    #[arg(long, value_name = "N", value_parser = at_least_one)]
    max_tokens: Option<usize>,

    /// Factor on the temperature of the draws; 0 always takes the most likely token.
    #[arg(long, value_name = "FACTOR", default_value_t = 1.0, value_parser = temperature)]
    temperature: f64,

    /// Let the model think first, where it has been taught to; the thoughts are shown on a terminal alone.
    #[arg(long, conflicts_with = "raw")]
    think: bool,

    /// Continue the prompt as plain text instead of answering it as a message.
    #[arg(long, conflicts_with = "system")]
    raw: bool,

    /// Print plain text also on a terminal.
    #[arg(long)]
    plain: bool,
}

fn at_least_one(text: &str) -> Result<usize, String> {
    text.parse().ok().filter(|count| *count >= 1).ok_or_else(|| "a whole number of at least 1 is wanted".into())
}

fn temperature(text: &str) -> Result<f64, String> {
    text.parse().ok().filter(|value| (0.0..=2.0).contains(value)).ok_or_else(|| "a number from 0 to 2 is wanted".into())
}

/// Generates and prints one answer.
pub fn run(mut arguments: Arguments) -> Result<(), CliError> {
    let prompt = prompt(arguments.prompt.take())?;
    let config = options::configure(arguments.model.config.as_ref(), &arguments.model.overrides())?;
    // The answer is what matters here; a log beside it only on request.
    options::start_log(&config, "warn")?;
    let live = !arguments.plain && std::io::stdout().is_terminal();
    block_on(async {
        let mut signals = Signals::new()?;
        let max_tokens = arguments.max_tokens.or(config.default_max_tokens);
        let house = signals.or(move || wire::open(&config)).await.map_err(|_| CliError::Interrupted)??;
        let answer = begin(&house, &arguments, &prompt, max_tokens, live, signals)?;
        let result = if live { answer.show().await } else { answer.print().await };
        house.leave();
        result
    })
}

/// The prompt from the command line, or all of standard input.
fn prompt(given: Option<String>) -> Result<String, CliError> {
    let text = match given {
        Some(text) => text,
        None if std::io::stdin().is_terminal() => {
            return Err(CliError::Usage("a prompt is wanted: canvasd generate \"Tell me a story.\"".into()));
        }
        None => {
            let mut text = String::new();
            std::io::stdin()
                .read_to_string(&mut text)
                .map_err(CliError::io("standard input cannot be read as text"))?;
            // The line feed belongs to `echo`, not to the question.
            text.strip_suffix('\n').map(str::to_owned).unwrap_or(text)
        }
    };
    if text.is_empty() { Err(CliError::Usage("the prompt is empty".into())) } else { Ok(text) }
}

/// An answer on its way.
struct Answer {
    reader: Reader,
    text: TextReader,
    signals: Signals,
}

fn begin(
    house: &House,
    arguments: &Arguments,
    prompt: &str,
    max_tokens: Option<usize>,
    live: bool,
    signals: Signals,
) -> Result<Answer, CliError> {
    let text: &Text = &house.text;
    let (prompt, dialect) = if arguments.raw {
        (Prompt::plain(text.encode(prompt).map_err(CliError::Prompt)?), Dialect::Raw)
    } else {
        let mut messages = Vec::new();
        messages.extend(arguments.system.as_ref().map(|system| Message::new(Role::System, system.clone())));
        messages.push(Message::new(Role::User, prompt));
        let thinking = if arguments.think { Thinking::On } else { Thinking::Default };
        let chat = Chat { messages, thinking, ..Chat::default() };
        (text.render(&chat).map_err(CliError::Prompt)?, Dialect::ChatWithoutTools)
    };
    let handle = house.engine.handle();
    let left = handle.limits().context.saturating_sub(prompt.ids.len()).max(1);
    let (draw, seed) = scheduler::sampling(arguments.temperature, 1.0, arguments.seed);
    let gate = text.gate(prompt.opening, dialect, Rules::default());
    let choice = Choice { seed, stream: 0, gate, structure: None };
    let job = Job {
        resume_points: prompt.resume_points,
        draw,
        drafts: if live { Drafts::Every(1) } else { Drafts::Off },
        ..Job::plain(prompt.ids, vec![choice], max_tokens.unwrap_or(left), house.sampler)
    };
    let mut ticket = handle.submit(job)?;
    let reader = ticket.choices.pop().ok_or(CliError::EngineStopped)?;
    Ok(Answer { reader, text: text.reader(prompt.opening, dialect, Rules::default()), signals })
}

/// What happened next to an answer.
enum Next {
    Text(Vec<Delta>),
    Draft(Option<Draft>),
    End(Vec<Delta>),
}

impl Answer {
    /// Waits for text or a draft, whichever comes first.
    async fn next(&mut self, drafts: &mut watch::Receiver<Option<Draft>>) -> Result<Next, CliError> {
        tokio::select! {
            biased;
            _ = self.signals.next() => Err(CliError::Interrupted),
            event = self.reader.next() => match event {
                Some(Event::Committed(committed)) => {
                    let ids: Vec<u32> = committed.tokens.iter().map(|token| token.id).collect();
                    Ok(Next::Text(self.text.push(&ids)))
                }
                Some(Event::Finished(_)) => Ok(Next::End(self.text.finish())),
                Some(Event::Failed(error)) => Err(error.into()),
                None => Err(CliError::EngineStopped),
            },
            Ok(()) = drafts.changed() => Ok(Next::Draft(drafts.borrow_and_update().clone())),
        }
    }

    /// Writes the content as it becomes final, and nothing else.
    async fn print(mut self) -> Result<(), CliError> {
        let mut drafts = self.reader.drafts();
        let mut ends_line = false;
        loop {
            let (deltas, last) = match self.next(&mut drafts).await? {
                Next::Text(deltas) => (deltas, false),
                Next::End(deltas) => (deltas, true),
                Next::Draft(_) => continue,
            };
            for delta in deltas {
                if let Delta::Content(text) = delta {
                    ends_line = text.ends_with('\n');
                    write(&text)?;
                }
            }
            if last {
                return if ends_line { Ok(()) } else { write("\n") };
            }
        }
    }

    /// Shows the canvas settling, and leaves the terminal as it was, whatever happens.
    async fn show(mut self) -> Result<(), CliError> {
        let (columns, rows) = size();
        let mut screen = Screen::new(columns, rows);
        let mut drafts = self.reader.drafts();
        let mut commits = 0;
        let result = loop {
            match self.next(&mut drafts).await {
                Err(error) => break Err(error),
                // A draft of what is text by now would stand there twice.
                Ok(Next::Draft(draft)) => {
                    let Some(draft) = draft.filter(|draft| draft.canvas == commits) else { continue };
                    let (columns, rows) = size();
                    screen.resize(columns, rows);
                    let text = self.text.draft(&draft.tokens).text;
                    write(&screen.draft(&text, &status(&draft)))?;
                }
                Ok(Next::Text(deltas)) => {
                    commits += 1;
                    commit(&mut screen, deltas)?;
                }
                Ok(Next::End(deltas)) => break commit(&mut screen, deltas),
            }
        };
        write(&screen.finish())?;
        result
    }
}

fn commit(screen: &mut Screen, deltas: Vec<Delta>) -> Result<(), CliError> {
    for delta in deltas {
        match delta {
            Delta::Content(text) | Delta::Reasoning(text) => write(&screen.commit(&text))?,
            // No tools are offered here, so the text room shows a call as content.
            Delta::ToolCall { name, arguments } => write(&screen.commit(&format!("{name}({arguments})")))?,
        }
    }
    Ok(())
}

fn size() -> (usize, usize) {
    terminal_size::terminal_size().map_or((80, 24), |(width, height)| (width.0.into(), height.0.into()))
}

fn status(draft: &Draft) -> String {
    match draft.phase {
        Phase::Queued => "waiting".into(),
        Phase::Encode => "reading the prompt".into(),
        Phase::Denoise => format!(
            "canvas {} · step {} of at most {} · {} of {} settled · {:.1} s",
            draft.canvas + 1,
            draft.step,
            draft.max_steps,
            draft.last_step.settled,
            draft.tokens.len(),
            draft.elapsed.as_secs_f64()
        ),
    }
}

/// Writes at once, so that a reader of a pipe sees text when it is final.
fn write(text: &str) -> Result<(), CliError> {
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).map_err(CliError::io("the answer cannot be written"))
}
