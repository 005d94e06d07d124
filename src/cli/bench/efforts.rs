//! `canvasd bench --efforts`: what each effort costs and gives: steps, speed, and right answers to given questions.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::Deserialize;
use serde_json::{Value, json};

use super::in_turn;
use super::report::Quantiles;
use super::target::{Question, Said, Sample, Target};
use crate::cli::CliError;
use crate::diffusion::Effort;
use crate::prompt::Role;

/// Questions with what a right answer holds.
#[derive(Debug, Clone)]
pub struct Quiz {
    items: Vec<Item>,
    /// Questions that need more than words (tools, a switched thinking channel), which are not asked.
    left_out: usize,
}

#[derive(Debug, Clone)]
struct Item {
    said: Said,
    /// Texts that a right answer holds, all of them.
    expect: Vec<String>,
    /// Texts of which it holds at least one, whatever the case; in lower case.
    any: Vec<String>,
}

/// A question as the file has it; it may say more, such as what kind of question it is.
#[derive(Debug, Deserialize)]
struct Entry {
    #[serde(default)]
    messages: Vec<Turn>,
    prompt: Option<String>,
    #[serde(default)]
    expect: Vec<String>,
    #[serde(default)]
    any: Vec<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Turn {
    role: Speaker,
    content: String,
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Speaker {
    System,
    User,
    Assistant,
}

impl Quiz {
    /// Reads a file of questions.
    pub fn read(path: &Path) -> Result<Quiz, CliError> {
        let what = format!("the questions in {} cannot be read", path.display());
        let text = std::fs::read_to_string(path).map_err(CliError::io(what.clone()))?;
        Quiz::parse(&text).map_err(|why| CliError::Usage(format!("{what}: {why}")))
    }

    fn parse(text: &str) -> Result<Quiz, String> {
        let all: Vec<Value> = serde_json::from_str(text).map_err(|error| error.to_string())?;
        let (plain, others): (Vec<Value>, Vec<Value>) = all.into_iter().partition(is_plain);
        if plain.is_empty() {
            return Err("there are none that can be asked in words alone".into());
        }
        let entries = plain.into_iter().map(|value| serde_json::from_value(value).map_err(|error| error.to_string()));
        let items = entries.map(|entry| Item::new(entry?)).collect::<Result<_, String>>()?;
        Ok(Quiz { items, left_out: others.len() })
    }
}

/// Whether a question can be asked in words alone.
fn is_plain(question: &Value) -> bool {
    let has_tools = question.get("tools").is_some() || question.get("enable_thinking").is_some();
    let turns = question["messages"].as_array().into_iter().flatten();
    !has_tools && !turns.into_iter().any(|turn| turn.get("tool_calls").is_some() || turn["role"] == "tool")
}

impl Item {
    fn new(entry: Entry) -> Result<Item, String> {
        if entry.expect.is_empty() && entry.any.is_empty() {
            return Err("each question needs either expect or any: what a right answer holds".into());
        }
        let said = match (entry.prompt, entry.messages) {
            (Some(prompt), messages) if messages.is_empty() => Said::Text(prompt),
            (None, messages) if !messages.is_empty() => Said::Chat(
                messages
                    .into_iter()
                    .map(|turn| {
                        let role = match turn.role {
                            Speaker::System => Role::System,
                            Speaker::User => Role::User,
                            Speaker::Assistant => Role::Assistant,
                        };
                        (role, turn.content)
                    })
                    .collect(),
            ),
            _ => return Err("each question needs either messages or a prompt".into()),
        };
        let any = entry.any.iter().map(|text| text.to_lowercase()).collect();
        Ok(Item { said, expect: entry.expect, any })
    }

    fn is_right(&self, answer: &str) -> bool {
        // A text that must stand at a word's beginning is given with the space before it.
        let lower = format!(" {}", answer.to_lowercase());
        let any = self.any.is_empty() || self.any.iter().any(|text| lower.contains(text.as_str()));
        any && self.expect.iter().all(|text| answer.contains(text.as_str()))
    }
}

/// How it is measured.
#[derive(Debug, Clone, Copy)]
pub struct Plan {
    /// Requests at once.
    pub streams: usize,
    /// Seeds per question.
    pub seeds: usize,
    /// Most tokens of an answer.
    pub max_tokens: usize,
}

/// All efforts.
#[derive(Debug)]
pub struct Efforts {
    model: String,
    place: String,
    questions: usize,
    left_out: usize,
    seeds: usize,
    rows: Vec<Measured>,
}

/// One effort.
#[derive(Debug)]
struct Measured {
    effort: Effort,
    right: usize,
    answers: usize,
    tokens: usize,
    canvases: usize,
    steps: usize,
    seconds: f64,
    first_text: Quantiles,
}

/// Asks every question with every seed at every effort.
pub async fn measure(quiz: &Quiz, plan: &Plan, target: &Arc<Target>) -> Result<Efforts, CliError> {
    let items: Arc<[Item]> = quiz.items.clone().into();
    let mut rows = Vec::new();
    for effort in Effort::ALL {
        let begun = Instant::now();
        let answers = in_turn(plan.streams, items.len() * plan.seeds, |number| {
            let (target, items, max_tokens) = (target.clone(), items.clone(), plan.max_tokens);
            async move {
                let item = &items[number % items.len()];
                let seed = (number / items.len()) as u64;
                let said = item.said.clone();
                let question = Question { said, seed, max_tokens, effort: Some(effort), steps: None };
                let sample = target.ask(&question).await?;
                Ok((item.is_right(&sample.text), sample))
            }
        })
        .await?;
        rows.push(Measured::new(effort, &answers, begun.elapsed()));
    }
    Ok(Efforts {
        model: target.model().to_owned(),
        place: target.place().to_owned(),
        questions: items.len(),
        left_out: quiz.left_out,
        seeds: plan.seeds,
        rows,
    })
}

impl Measured {
    fn new(effort: Effort, answers: &[(bool, Sample)], took: Duration) -> Measured {
        let sum = |what: fn(&Sample) -> usize| answers.iter().map(|(_, sample)| what(sample)).sum();
        Measured {
            effort,
            right: answers.iter().filter(|(right, _)| *right).count(),
            answers: answers.len(),
            tokens: sum(|sample| sample.tokens),
            canvases: sum(|sample| sample.canvases),
            steps: sum(|sample| sample.steps),
            seconds: took.as_secs_f64().max(1e-9),
            first_text: Quantiles::of(answers.iter().filter_map(|(_, sample)| sample.first_text).collect()),
        }
    }

    fn share_right(&self) -> f64 {
        self.right as f64 / self.answers.max(1) as f64
    }

    fn steps_per_canvas(&self) -> f64 {
        self.steps as f64 / self.canvases.max(1) as f64
    }
}

impl Efforts {
    /// For programs.
    pub fn json(&self) -> Value {
        let row = |row: &Measured| {
            json!({
                "effort": row.effort.word(),
                "right": row.share_right(),
                "steps_per_canvas": row.steps_per_canvas(),
                "tokens_per_step": row.tokens as f64 / row.steps.max(1) as f64,
                "tokens_per_second": row.tokens as f64 / row.seconds,
                "first_text_ms": row.first_text.json(),
                "answers": row.answers,
                "tokens": row.tokens,
                "canvases": row.canvases,
                "steps": row.steps,
            })
        };
        json!({
            "canvasd": env!("CARGO_PKG_VERSION"),
            "model": self.model,
            "place": self.place,
            "questions": self.questions,
            "questions_left_out": self.left_out,
            "seeds": self.seeds,
            "efforts": self.rows.iter().map(row).collect::<Vec<_>>(),
        })
    }

    /// For people.
    pub fn table(&self) -> String {
        use std::fmt::Write;
        let mut table = format!(
            "{} on {}, {} questions ({} left out), {} seeds\n\
             effort    right  steps/canvas  tokens/step  tokens/s  first text ms p50/p99\n",
            self.model, self.place, self.questions, self.left_out, self.seeds
        );
        for row in &self.rows {
            // Writing to a string cannot fail.
            let _ = writeln!(
                table,
                "{:<8}  {:>4.1}%  {:>12.2}  {:>11.2}  {:>8.0}  {:>21}",
                row.effort.word(),
                100.0 * row.share_right(),
                row.steps_per_canvas(),
                row.tokens as f64 / row.steps.max(1) as f64,
                row.tokens as f64 / row.seconds,
                format!("{:.0} / {:.0}", row.first_text.p50, row.first_text.p99),
            );
        }
        table
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_committed_questions_are_understood() {
        let smoke = Quiz::parse(include_str!("../../../tests/fixtures/smoke.json")).unwrap();
        assert!(smoke.items.len() >= 20);
        let held_out = Quiz::parse(include_str!("../../../tests/fixtures/held_out.json")).unwrap();
        assert!(held_out.items.len() >= 100 && held_out.left_out == 0);
    }

    #[test]
    fn an_answer_is_right_if_it_holds_what_is_expected() {
        let all = Quiz::parse(r#"[{"prompt": "Once", "expect": ["a", "b"]}]"#).unwrap();
        assert!(all.items[0].is_right("b and a") && !all.items[0].is_right("b"));
        let any = Quiz::parse(r#"[{"prompt": "Once", "any": ["Paris", " 33."], "kind": "sum"}]"#).unwrap();
        assert!(any.items[0].is_right("PARIS") && any.items[0].is_right("33.") && !any.items[0].is_right("133."));
    }

    #[test]
    fn what_needs_more_than_words_is_counted_and_left_out() {
        let with_tool = r#"{"messages": [{"role": "user", "content": "b"}], "tools": [], "expect": []}"#;
        let quiz = Quiz::parse(&format!(r#"[{{"prompt": "a", "expect": ["c"]}}, {with_tool}]"#)).unwrap();
        assert_eq!((quiz.items.len(), quiz.left_out), (1, 1));
    }

    #[test]
    fn what_is_no_question_is_refused_by_name() {
        for (text, why) in [
            ("[]", "none"),
            (r#"[{"expect": ["c"]}]"#, "messages or a prompt"),
            (r#"[{"prompt": "a", "messages": [{"role": "user", "content": "b"}], "expect": ["c"]}]"#, "a prompt"),
            (r#"[{"prompt": "a", "expects": ["c"]}]"#, "expect or any"),
            (r#"[{"messages": [{"role": "nobody", "content": "b"}], "any": ["c"]}]"#, "nobody"),
        ] {
            assert!(Quiz::parse(text).unwrap_err().contains(why), "{text}");
        }
    }

    #[test]
    fn rows_sum_their_answers() {
        let sample = |tokens| Sample {
            text: String::new(),
            first_text: Some(Duration::from_millis(8)),
            commits: Vec::new(),
            tokens,
            canvases: 1,
            steps: 4,
        };
        let row = Measured::new(Effort::Fast, &[(true, sample(10)), (false, sample(30))], Duration::from_secs(2));
        assert_eq!((row.share_right(), row.steps_per_canvas(), row.tokens), (0.5, 4.0, 40));
        let report =
            Efforts { model: "m".into(), place: "p".into(), questions: 2, left_out: 0, seeds: 1, rows: vec![row] };
        assert_eq!(report.json()["efforts"][0]["tokens_per_second"], 20.0);
        assert_eq!(report.table().lines().count(), 3);
    }
}
