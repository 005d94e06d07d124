//! The model against the reference implementation, through the product's own path: the checkpoint is opened and loaded
//! as a server does it, and every number is asked for through passes.
//!
//! Fixtures lie in `tests/fixtures/`; further folders (whatever the fixture tool writes, any seed and shape) are read
//! from `CANVASD_PARITY_FIXTURES`, separated by colons. Run with `--nocapture` to see the largest differences.

mod blocks;
mod cases;
mod company;
mod fixture;
mod formats;
mod loading;
mod precision;
mod refusals;
mod statistics;
mod traces;
mod wide;
mod world;
