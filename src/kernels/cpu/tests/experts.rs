//! Grouped experts.

use super::*;

struct Layer {
    hidden: usize,
    inner: usize,
    gate: Vec<Vec<f32>>,
    up: Vec<Vec<f32>>,
    down: Vec<Vec<f32>>,
}

impl Layer {
    fn new(count: usize, hidden: usize, inner: usize, numbers: &mut Numbers) -> Layer {
        let mut matrices = || (0..count).map(|_| numbers.vector(hidden * inner)).collect::<Vec<_>>();
        Layer { hidden, inner, gate: matrices(), up: matrices(), down: matrices() }
    }

    fn packed(&self, cpu: &Cpu) -> Experts {
        let (h, f) = (self.hidden, self.inner);
        let gate_up = self.gate.iter().zip(&self.up).map(|(gate, up)| gated(cpu, f, h, gate, up)).collect();
        let down = self.down.iter().map(|down| plain(cpu, h, f, down)).collect();
        Experts::new(gate_up, down).unwrap()
    }

    fn reference(&self, x: &[f32], routing: Routing<'_>) -> Vec<f64> {
        let mut out = vec![0.0; x.len()];
        for (slot, &expert) in routing.experts.iter().enumerate() {
            let (row, e) = (slot / routing.top_k, expert as usize);
            let x = &x[row * self.hidden..][..self.hidden];
            let inner: Vec<f64> = self.gate[e]
                .chunks(self.hidden)
                .zip(self.up[e].chunks(self.hidden))
                .map(|(gate, up)| gelu(dot(x, gate)) * dot(x, up))
                .collect();
            for (y, down) in out[row * self.hidden..].iter_mut().zip(self.down[e].chunks(self.inner)) {
                let sum: f64 = down.iter().zip(&inner).map(|(w, x)| f64::from(*w) * x).sum();
                *y += f64::from(routing.weights[slot]) * sum;
            }
        }
        out
    }
}

fn routing(rows: usize, count: usize, top_k: usize, numbers: &mut Numbers) -> (Vec<u32>, Vec<f32>) {
    let mut experts = Vec::new();
    for _ in 0..rows {
        let first = numbers.below(count);
        experts.extend((0..top_k).map(|rank| ((first + rank * rank) % count) as u32));
    }
    let weights = experts.iter().map(|_| numbers.number().abs()).collect();
    (experts, weights)
}

#[test]
fn experts_agree_with_the_reference() {
    let mut numbers = Numbers::new(11);
    for (count, hidden, inner, rows, top_k) in [(1, 16, 8, 1, 1), (4, 64, 40, 17, 2), (8, 96, 33, 50, 3)] {
        let layer = Layer::new(count, hidden, inner, &mut numbers);
        let x = numbers.vector(rows * hidden);
        let (experts, weights) = routing(rows, count, top_k, &mut numbers);
        let routing = Routing { experts: &experts, weights: &weights, top_k };
        let wanted = layer.reference(&x, routing);
        for cpu in cpus(2) {
            let mut out = vec![f32::NAN; x.len()];
            cpu.experts(&x, routing, &layer.packed(&cpu), &mut out).unwrap();
            close(&out, &wanted, 2e-3);
        }
    }
}

#[test]
fn a_row_alone_is_the_same_row_in_company_on_any_number_of_threads() {
    let mut numbers = Numbers::new(12);
    let (count, hidden, inner, rows, top_k) = (6, 80, 48, 41, 3);
    let layer = Layer::new(count, hidden, inner, &mut numbers);
    let x = numbers.vector(rows * hidden);
    let (experts, weights) = routing(rows, count, top_k, &mut numbers);
    for path in Path::ALL.into_iter().filter(|path| path.supported()) {
        let run = |threads: usize, rows: std::ops::Range<usize>| {
            let cpu = Cpu::new(threads, Some(path)).unwrap();
            let slots = rows.start * top_k..rows.end * top_k;
            let x = &x[rows.start * hidden..rows.end * hidden];
            let mut out = vec![0.0; x.len()];
            let routing = Routing { experts: &experts[slots.clone()], weights: &weights[slots], top_k };
            cpu.experts(x, routing, &layer.packed(&cpu), &mut out).unwrap();
            out
        };
        let all = run(1, 0..rows);
        same_bits(&all, &run(2, 0..rows));
        same_bits(&all, &run(3, 0..rows));
        for row in [0, 13, 40] {
            same_bits(&all[row * hidden..(row + 1) * hidden], &run(2, row..row + 1));
        }
        same_bits(&all[5 * hidden..25 * hidden], &run(3, 5..25));
    }
}

#[test]
fn wrong_routing_is_an_error() {
    let mut numbers = Numbers::new(13);
    let cpu = Cpu::new(1, None).unwrap();
    let layer = Layer::new(2, 16, 8, &mut numbers);
    let packed = layer.packed(&cpu);
    let (x, mut out) = ([0.0; 16], [0.0; 16]);
    let weights = [1.0];
    let outside = Routing { experts: &[2], weights: &weights, top_k: 1 };
    assert!(cpu.experts(&x, outside, &packed, &mut out).is_err());
    let short = Routing { experts: &[0], weights: &[], top_k: 1 };
    assert!(cpu.experts(&x, short, &packed, &mut out).is_err());
    assert!(Experts::new(vec![], vec![]).is_err());
    assert!(Experts::new(vec![plain(&cpu, 8, 16, &[0.0; 128])], vec![plain(&cpu, 16, 8, &[0.0; 128])]).is_err());
    let no_width = Experts::new(vec![gated(&cpu, 0, 16, &[], &[])], vec![plain(&cpu, 16, 0, &[])]);
    assert!(no_width.unwrap_err().to_string().contains("inner width"));
}
