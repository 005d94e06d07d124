//! Stand-ins on processors without AMX in their family: types without a value.

use std::convert::Infallible;

use super::pairs::PairTile;

/// Never exists here.
#[derive(Debug, Clone, Copy)]
pub(super) struct Amx(Infallible);

/// Never exists here.
pub(super) struct Tiles(Infallible);

impl Amx {
    pub(super) fn detect() -> Option<Amx> {
        None
    }

    pub(super) fn spin(self, _rounds: usize) {
        match self.0 {}
    }

    pub(super) fn tiles(self) -> Tiles {
        match self.0 {}
    }
}

impl Tiles {
    /// # Safety
    /// Never called.
    pub(super) unsafe fn multiply(&mut self, _tile: &PairTile) {
        match self.0 {}
    }
}
