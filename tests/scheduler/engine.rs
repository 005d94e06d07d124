//! The engine's thread: the same in real time, and how it ends.

use std::sync::Arc;
use std::time::Duration;

use canvasd::pass::{Capacity, Denoiser, EngineError, Limits, Output, Pass, SegmentError};
use canvasd::scheduler::{Engine, Event, JobError, Refusal, Settings, StartError, State, Ticket};

use crate::log::catch;
use crate::support::{Fault, Scripted, limits};
use crate::world::{alone, job, jobs, prompt, settings};

async fn text(ticket: &mut Ticket, choice: usize) -> Result<Vec<u32>, JobError> {
    let mut tokens = Vec::new();
    while let Some(event) = ticket.choices[choice].next().await {
        match event {
            Event::Committed(committed) => tokens.extend(committed.tokens.iter().map(|token| token.id)),
            Event::Finished(_) => return Ok(tokens),
            Event::Failed(error) => return Err(error),
        }
    }
    panic!("the events end without an end");
}

fn start(model: Scripted) -> Engine {
    Engine::start(Box::new(model), settings()).expect("starts")
}

#[tokio::test]
async fn many_requests_at_once_get_their_texts() {
    let model = Scripted::new(limits());
    let log = model.log();
    let engine = start(model);
    let tasks: Vec<_> = (0..40)
        .map(|i| {
            let handle = engine.handle();
            tokio::spawn(async move {
                let mut ticket = handle.submit(job(&prompt(5 + i, i as u32), 20, i as u64)).expect("taken");
                (i, text(&mut ticket, 0).await.expect("finished"))
            })
        })
        .collect();
    for task in tasks {
        let (i, got) = task.await.expect("no panic");
        assert_eq!(got, alone(job(&prompt(5 + i, i as u32), 20, i as u64))[0].tokens());
    }
    engine.drain(Duration::from_secs(10)).await;
    assert!(log.lock().expect("the log").violations.is_empty());
}

#[tokio::test]
async fn draining_lets_running_requests_finish() {
    let engine = start(Scripted::new(limits()).with_pause(Duration::from_millis(2)));
    let handle = engine.handle();
    let mut ticket = handle.submit(job(&prompt(5, 1), 40, 1)).expect("taken");
    let drained = tokio::spawn(engine.drain(Duration::from_secs(60)));
    let mut state = handle.watch();
    state.wait_for(|state| *state != State::Ready).await.expect("watched");
    assert!(matches!(handle.submit(job(&prompt(5, 1), 40, 1)), Err(Refusal::Draining | Refusal::Stopped)));
    assert_eq!(text(&mut ticket, 0).await.expect("finished").len(), 40);
    drained.await.expect("drained");
    assert_eq!(handle.state(), State::Stopped);
    assert!(matches!(handle.submit(job(&prompt(5, 1), 40, 1)), Err(Refusal::Stopped)));
}

#[tokio::test]
async fn after_the_grace_the_rest_is_told() {
    let model = Scripted::new(limits()).with_steps(12..=12).with_pause(Duration::from_millis(20));
    let engine = start(model);
    let mut ticket = engine.handle().submit(job(&prompt(5, 1), 200, 1)).expect("taken");
    let begun = std::time::Instant::now();
    engine.drain(Duration::from_millis(100)).await;
    assert!(begun.elapsed() < Duration::from_secs(2));
    assert_eq!(text(&mut ticket, 0).await, Err(JobError::ShutDown));
}

/// The grace is what whoever stops the process waits for; a pass that would end later is not begun.
#[tokio::test]
async fn no_pass_is_begun_that_would_outlast_the_grace() {
    let engine = start(Scripted::new(limits()).with_steps(12..=12).with_pause(Duration::from_millis(300)));
    let mut ticket = engine.handle().submit(job(&prompt(5, 1), 200, 1)).expect("taken");
    let (begun, grace) = (std::time::Instant::now(), Duration::from_millis(800));
    engine.drain(grace).await;
    assert!(begun.elapsed() <= grace, "{:?} for a grace of {grace:?}", begun.elapsed());
    assert!(begun.elapsed() >= Duration::from_millis(300), "it ended without a pass");
    assert_eq!(text(&mut ticket, 0).await, Err(JobError::ShutDown));
}

#[tokio::test]
async fn dropping_the_engine_tells_everybody() {
    let engine = start(Scripted::new(limits()).with_pause(Duration::from_millis(5)));
    let handle = engine.handle();
    let mut ticket = handle.submit(jobs(&prompt(5, 1), 200, 1, 3, 0)).expect("taken");
    drop(engine);
    for choice in 0..3 {
        assert_eq!(text(&mut ticket, choice).await, Err(JobError::ShutDown));
    }
    assert_eq!(handle.state(), State::Stopped);
}

#[tokio::test]
async fn a_panic_of_the_model_stops_the_engine_and_everybody_is_told() {
    let mut passes = 0;
    let model = Scripted::new(limits()).with_faults(move |_| {
        passes += 1;
        if passes == 4 { Fault::Panic } else { Fault::None }
    });
    let engine = Engine::start(Box::new(model), Settings { max_running: 1, ..settings() }).expect("starts");
    let handle = engine.handle();
    let mut running = handle.submit(job(&prompt(5, 1), 200, 1)).expect("taken");
    let mut waiting = handle.submit(job(&prompt(5, 2), 200, 1)).expect("taken");
    assert!(matches!(text(&mut running, 0).await, Err(JobError::Model(why)) if why.contains("panicked")));
    assert_eq!(text(&mut waiting, 0).await, Err(JobError::Stopped));
    handle.watch().wait_for(|state| *state == State::Stopped).await.expect("watched");
    assert!(matches!(handle.submit(job(&prompt(5, 1), 8, 1)), Err(Refusal::Stopped)));
}

#[tokio::test]
async fn a_reader_that_leaves_does_not_hold_up_the_end() {
    let engine = start(Scripted::new(limits()).with_steps(12..=12).with_pause(Duration::from_millis(2)));
    let ticket = engine.handle().submit(job(&prompt(5, 1), 200, 1)).expect("taken");
    drop(ticket);
    let begun = std::time::Instant::now();
    engine.drain(Duration::from_secs(60)).await;
    assert!(begun.elapsed() < Duration::from_secs(10));
}

/// An engine that is asleep because its only reader is slow wakes when the reader goes on.
#[tokio::test]
async fn a_sleeping_engine_is_woken_by_its_reader() {
    let settings = Settings { unread_canvases: 1, ..settings() };
    let engine = Engine::start(Box::new(Scripted::new(limits())), settings).expect("starts");
    let mut ticket = engine.handle().submit(job(&prompt(5, 1), 40, 1)).expect("taken");
    tokio::time::sleep(Duration::from_millis(50)).await;
    let got = tokio::time::timeout(Duration::from_secs(20), text(&mut ticket, 0)).await.expect("woken");
    assert_eq!(got.expect("finished").len(), 40);
}

#[test]
fn a_model_that_cannot_reserve_is_an_error_at_start() {
    struct Poor(Limits);
    impl Denoiser for Poor {
        fn limits(&self) -> &Limits {
            &self.0
        }
        fn reserve(&mut self, _: Capacity) -> Result<(), EngineError> {
            Err(EngineError::Capacity("no memory".into()))
        }
        fn run(&mut self, _: &Pass) -> Result<Vec<Result<Output, SegmentError>>, EngineError> {
            Ok(Vec::new())
        }
    }
    let started = Engine::start(Box::new(Poor(limits())), settings());
    assert!(matches!(started, Err(StartError::Reserve(EngineError::Capacity(_)))));
}

/// A context that memory cuts is told to whoever can give more, and only then.
#[test]
fn a_context_cut_by_memory_is_told_at_start() {
    let caught = catch();
    drop(start(Scripted::new(limits())));
    assert_eq!(caught.with("WARN"), Vec::<String>::new());
    let small = Settings { kv_bytes: 3_000, ..settings() };
    let engine = Engine::start(Box::new(Scripted::new(limits())), small).expect("starts");
    let (held, whole) = (engine.handle().limits().context, engine.handle().model_context());
    assert!(held < 256 && whole == 256, "{held} of {whole}");
    let told = caught.with("WARN");
    let expected = format!("memory holds texts of {held} tokens, not the model's 256; raise kv_memory");
    assert!(told.len() == 1 && told[0].contains(&expected), "{told:?}");
}

/// Fewer canvases at once than wanted: whoever set both numbers is told which of them to change.
#[test]
fn fewer_slots_are_told_with_their_reason() {
    let told = |settings: Settings| {
        let caught = catch();
        drop(Engine::start(Box::new(Scripted::new(limits())), settings).expect("starts"));
        caught.with("canvases at once")
    };
    assert_eq!(told(Settings { max_rows_per_pass: Some(1000), ..settings() }), Vec::<String>::new());
    let rows = told(Settings { max_rows_per_pass: Some(30), ..settings() });
    let expected = "max_rows_per_pass = 30 has room for 3 canvases at once, not for max_running = 8";
    assert!(rows.len() == 1 && rows[0].contains(expected) && !rows[0].contains("memory"), "{rows:?}");
    let memory = told(Settings { working_bytes: Some(100), ..settings() });
    assert!(memory.len() == 1 && memory[0].contains("working memory") && !memory[0].contains("rows"), "{memory:?}");
}

#[test]
fn handles_can_be_shared_between_threads() {
    let engine = start(Scripted::new(limits()));
    let handle = Arc::new(engine.handle());
    let threads: Vec<_> = (0..4)
        .map(|i| {
            let handle = handle.clone();
            std::thread::spawn(move || {
                let mut ticket = handle.submit(job(&prompt(5, i), 16, 1)).expect("taken");
                let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
                let mut tokens = 0;
                while let Some(event) = runtime.block_on(ticket.choices[0].next()) {
                    if let Event::Committed(committed) = event {
                        tokens += committed.tokens.len();
                    }
                }
                tokens
            })
        })
        .collect();
    for thread in threads {
        assert_eq!(thread.join().expect("no panic"), 16);
    }
}
