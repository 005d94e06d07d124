//! Single passes: encoder states, keys and values, decoder logits without and with self-conditioning.

use canvasd::model::{KvElement, LayerKind, LoadOptions, probe};
use canvasd::pass::{Conditioning, KvView};

use super::fixture::{Fixture, all, committed};
use super::world::{World, Worst, close};

/// f32 weights: what two orders of summation may differ by.
pub const BOUND: f32 = 1e-4;

#[test]
fn single_passes_equal_the_reference() {
    let mut skipped = 0;
    for fixture in all() {
        for operations in [probe::Operations::ByDevice, probe::Operations::Twins] {
            let tuning = probe::Tuning { operations, ..Default::default() };
            skipped += compare(&fixture, &unrounded(), tuning);
        }
    }
    if skipped > 0 {
        println!("skipped: {skipped} image cases; images are not served yet");
    }
}

#[test]
fn any_tile_width_gives_the_same_numbers() {
    for fixture in committed() {
        let vocabulary = fixture.checkpoint().config.vocabulary;
        for tile in [96, 128, vocabulary] {
            for operations in [probe::Operations::ByDevice, probe::Operations::Twins] {
                let tuning = probe::Tuning { vocabulary_tile: Some(tile), operations };
                compare(&fixture, &unrounded(), tuning);
            }
        }
    }
}

#[test]
fn every_instruction_path_gives_the_same_numbers() {
    use canvasd::kernels::cpu::Path;
    for fixture in committed() {
        for path in Path::ALL.into_iter().filter(|path| path.supported()) {
            let options = LoadOptions { path: Some(path), ..unrounded() };
            compare(&fixture, &options, probe::Tuning::default());
        }
    }
}

/// Keys and values unrounded, whatever the weights are stored in.
fn unrounded() -> LoadOptions {
    LoadOptions { kv: Some(KvElement::F32), ..Default::default() }
}

/// Compares every case of a fixture; returns how many were skipped.
fn compare(fixture: &Fixture, options: &LoadOptions, tuning: probe::Tuning) -> usize {
    let checkpoint = fixture.checkpoint();
    let mut world = World::load(&checkpoint, options, tuning);
    let mut worst = Worst::default();
    let mut skipped = 0;
    for case in fixture.names("cases") {
        if case.contains("image") {
            skipped += 1;
        } else if !case.ends_with("_commit") {
            let rows = fixture.get(&format!("enc.{case}.input_ids")).shape[0];
            for row in 0..rows {
                let mut one = Case { fixture, world: &mut world, worst: &mut worst, row, pads: 0 };
                one.run(&case);
            }
            // Pages and slots of one case are not needed by the next.
            world = World::load(&fixture.checkpoint(), options, tuning);
        }
    }
    println!("{} {tuning:?} {:?}: {worst:?}", fixture.name, options.path);
    assert!(worst.compared > 1000, "{}: nothing was compared", fixture.name);
    skipped
}

struct Case<'a> {
    fixture: &'a Fixture,
    world: &'a mut World,
    worst: &'a mut Worst,
    /// Row of the reference's batch.
    row: usize,
    /// Left padding of that row, which we do not have: our positions are lower by it.
    pads: usize,
}

impl Case<'_> {
    fn run(&mut self, case: &str) {
        let mask = self.fixture.get(&format!("enc.{case}.attention_mask"));
        self.pads = mask.at(self.row).iter().take_while(|&&seen| seen == 0.0).count();
        let mut kv = KvView::default();
        self.encode(case, &mut kv);
        self.decode(case, &kv);
        let commit = format!("{case}_commit");
        if self.fixture.has(&format!("enc.{commit}.input_ids")) {
            self.encode(&commit, &mut kv);
            self.decode(&commit, &kv);
        }
    }

    fn encode(&mut self, case: &str, kv: &mut KvView) {
        let tokens = self.fixture.get(&format!("enc.{case}.input_ids")).tokens(self.row);
        let pads = if kv.len == 0 { self.pads } else { 0 };
        let segment = self.world.encode(kv, &tokens[pads..]);
        let (_, seen) = self.world.run(vec![segment]);
        for (layer, hidden) in seen.hidden.iter().enumerate() {
            let name = format!("enc.{case}.hidden.{layer}");
            if self.fixture.has(&name) {
                let wanted = self.fixture.get(&name);
                let width = wanted.shape[2];
                let wanted = &wanted.at(self.row)[pads * width..];
                close(&name, hidden, wanted, BOUND, &mut self.worst.hidden, &mut self.worst.compared);
            }
        }
        for layer in 0..self.world.layers.len() {
            self.cache(case, layer, kv);
        }
    }

    /// The reference keeps the last W−1 positions of sliding layers, all of full ones.
    fn cache(&mut self, case: &str, layer: usize, kv: &KvView) {
        let (k, v) = (format!("enc.{case}.cache.{layer}.k"), format!("enc.{case}.cache.{layer}.v"));
        if !self.fixture.has(&k) {
            return;
        }
        let (keys, values) = (self.fixture.get(&k), self.fixture.get(&v));
        let [_, heads, kept, dim] = keys.shape[..] else { panic!("{k}: shape") };
        let end = kv.len + self.pads;
        if self.world.layers[layer] == LayerKind::Sliding {
            assert_eq!(kept, end.min(self.world.limits.window - 1), "{k}: positions kept");
        }
        for slot in 0..kept {
            let Some(position) = (end - kept + slot).checked_sub(self.pads) else { continue };
            let (key, value) = self.world.keys_values(layer, kv, position);
            for head in 0..heads {
                let wanted = |all: &[f32]| all[(head * kept + slot) * dim..][..dim].to_vec();
                // A padded row's keys are turned to other positions; everything seen through them is compared.
                if self.pads == 0 {
                    let found = &key[head * dim..][..dim];
                    let wanted = wanted(keys.at(self.row));
                    close(&k, found, &wanted, BOUND, &mut self.worst.keys, &mut self.worst.compared);
                }
                let found = &value[head * dim..][..dim];
                let wanted = wanted(values.at(self.row));
                close(&v, found, &wanted, BOUND, &mut self.worst.values, &mut self.worst.compared);
            }
        }
    }

    fn decode(&mut self, case: &str, kv: &KvView) {
        let canvas = self.fixture.get(&format!("dec.{case}.canvas")).tokens(self.row);
        for (tag, conditioning) in [("first", Conditioning::Fresh), ("selfcond", Conditioning::Carried)] {
            let name = format!("dec.{case}.{tag}");
            if !self.fixture.has(&format!("{name}.logits")) {
                continue;
            }
            if conditioning == Conditioning::Carried {
                let logits = self.fixture.get(&format!("{name}.input_logits"));
                probe::inject_logits(&mut self.world.model, 1, logits.at(self.row)).expect("a slot");
            }
            let segment = self.world.denoise(kv, 1, conditioning, &canvas, 0.8);
            let (_, seen) = self.world.run(vec![segment]);
            for (layer, hidden) in seen.hidden.iter().enumerate() {
                let name = format!("{name}.hidden.{layer}");
                if self.fixture.has(&name) {
                    let wanted = self.fixture.get(&name);
                    let wanted = wanted.at(self.row);
                    close(&name, hidden, wanted, BOUND, &mut self.worst.hidden, &mut self.worst.compared);
                }
            }
            let wanted = self.fixture.get(&format!("{name}.logits"));
            let found = seen.logits.concat();
            let wanted = wanted.at(self.row);
            close(&name, &found, wanted, BOUND, &mut self.worst.logits, &mut self.worst.compared);
        }
    }
}
