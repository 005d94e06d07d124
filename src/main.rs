//! The `canvasd` program.

fn main() {}
