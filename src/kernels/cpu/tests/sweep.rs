//! The vocabulary sweep: statistics, draws, soft embeddings.

use super::{precision::rounding, *};

struct Case {
    vocabulary: usize,
    width: usize,
    hidden: Vec<f32>,
    table: Vec<f32>,
    uniforms: Vec<f32>,
    cap: Option<f32>,
}

impl Case {
    /// `sharpness` scales the hidden rows: larger makes peaked distributions.
    fn new(rows: usize, vocabulary: usize, width: usize, sharpness: f32) -> Case {
        let mut numbers = Numbers::new((vocabulary + width) as u64);
        let hidden = numbers.vector(rows * width).iter().map(|x| x * sharpness).collect();
        let table = numbers.vector(vocabulary * width);
        let uniforms = numbers.vector(rows).iter().map(|x| x.abs().min(0.999_999)).collect();
        Case { vocabulary, width, hidden, table, uniforms, cap: Some(30.0) }
    }

    fn rows(&self) -> usize {
        self.uniforms.len()
    }

    fn head(&self, temperature: f32, draw: Draw) -> Head<'_> {
        Head { rows: self.rows(), temperature, draw, uniforms: &self.uniforms, bias: &[], top_k: 5 }
    }

    fn run(&self, cpu: &Cpu, tile: usize, heads: &[Head<'_>]) -> (Vec<Statistics>, Vec<f32>) {
        let mut soft = vec![f32::NAN; self.hidden.len()];
        let table = plain(cpu, self.vocabulary, self.width, &self.table);
        let sweep = Sweep { softcap: self.cap, tile, negligible: 28.0, heads, watch: None, times: None };
        let statistics = cpu.sweep(&self.hidden, &table, &sweep, Some(&mut soft)).unwrap();
        (statistics, soft)
    }

    /// z of a row in f64.
    fn z(&self, row: usize, head: &Head<'_>) -> Vec<f64> {
        let x = &self.hidden[row * self.width..][..self.width];
        let mut z: Vec<f64> = self.table.chunks(self.width).map(|w| dot(x, w)).collect();
        if let Some(cap) = self.cap {
            z.iter_mut().for_each(|z| *z = f64::from(cap) * (*z / f64::from(cap)).tanh());
        }
        for (token, bias) in head.bias {
            z[*token as usize] += f64::from(*bias);
        }
        z.iter().map(|z| z / f64::from(head.temperature)).collect()
    }

    fn check(&self, row: usize, head: &Head<'_>, found: &Statistics, (soft, tolerance): (&[f32], f64)) {
        let z = self.z(row, head);
        let max = z.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let weights: Vec<f64> = z.iter().map(|z| (z - max).exp()).collect();
        let sum: f64 = weights.iter().sum();
        let entropy: f64 = weights.iter().map(|w| w / sum).filter(|p| *p > 0.0).map(|p| -p * p.ln()).sum();
        assert!(found.finite);
        close(&[found.max, found.lse, found.entropy], &[max, max + sum.ln(), entropy], 2e-4);
        assert!((z[found.argmax as usize] - max).abs() < 1e-4);
        let mut order: Vec<usize> = (0..z.len()).collect();
        order.sort_by(|a, b| z[*b].total_cmp(&z[*a]));
        assert_eq!(found.top.len(), head.top_k);
        for (candidate, &token) in found.top.iter().zip(&order) {
            close(&[candidate.logit], &[z[token]], 1e-4);
        }
        let wanted: Vec<f64> = (0..self.width)
            .map(|d| (0..z.len()).map(|v| weights[v] / sum * f64::from(self.table[v * self.width + d])).sum())
            .collect();
        close(soft, &wanted, tolerance);
        // The draw lies where the uniform number falls in the cumulative distribution.
        let factor = match head.draw {
            Draw::Argmax => return assert_eq!(found.sampled, found.argmax),
            Draw::Scaled { temperature, .. } => 1.0 / f64::from(temperature),
        };
        let masses: Vec<f64> = z.iter().map(|z| ((z - max) * factor).exp()).collect();
        let total: f64 = masses.iter().sum();
        let before: f64 = masses[..found.sampled as usize].iter().sum::<f64>() / total;
        let after = before + masses[found.sampled as usize] / total;
        let u = f64::from(self.uniforms[row]);
        assert!(before - 1e-4 <= u && u <= after + 1e-4, "row {row}: {u} is not in {before} … {after}");
    }
}

#[test]
fn statistics_draws_and_soft_embeddings_agree_with_the_reference() {
    for (case, temperature) in [
        (Case::new(3, 50, 16, 1.0), 0.8),
        (Case::new(14, 517, 33, 0.3), 0.4),
        (Case::new(5, 700, 300, 1.0), 0.7),
        (Case::new(4, 1000, 64, 8.0), 0.5),
    ] {
        for cpu in cpus(2).into_iter().chain(rounding(2)) {
            // Weights and a table of numbers up to 1, each rounded to bf16.
            let tolerance = if cpu.precision() == Precision::Exact { 1e-4 } else { 1.0 / 256.0 };
            for tile in [96, 128, case.vocabulary] {
                for draw in [
                    Draw::Argmax,
                    Draw::Scaled { temperature: 1.0, top_p: 1.0 },
                    Draw::Scaled { temperature: 1.7, top_p: 1.0 },
                ] {
                    let head = Head { bias: &[(3, 4.0), (40, -2.5)], ..case.head(temperature, draw) };
                    let (found, soft) = case.run(&cpu, tile, &[head]);
                    for (row, (found, soft)) in found.iter().zip(soft.chunks(case.width)).enumerate() {
                        case.check(row, &head, found, (soft, tolerance));
                    }
                }
            }
        }
    }
}

#[test]
fn rows_do_not_depend_on_their_company_or_the_threads() {
    let case = Case::new(27, 400, 48, 2.0);
    let draw = Draw::Scaled { temperature: 1.2, top_p: 1.0 };
    let machines = |threads| cpus(threads).into_iter().chain(rounding(threads));
    for (cpu, others) in machines(1).zip(machines(2).zip(machines(3))) {
        let (all, soft) = case.run(&cpu, 96, &[case.head(0.6, draw)]);
        for other in [others.0, others.1] {
            let (again, soft_again) = case.run(&other, 96, &[case.head(0.6, draw)]);
            assert_eq!(all, again);
            same_bits(&soft, &soft_again);
        }
        for row in [0, 11, 26] {
            let own = |x: &[f32], width: usize| x[row * width..(row + 1) * width].to_vec();
            let alone = Case {
                hidden: own(&case.hidden, 48),
                uniforms: own(&case.uniforms, 1),
                table: case.table.clone(),
                ..case
            };
            let (found, soft_alone) = alone.run(&cpu, 96, &[alone.head(0.6, draw)]);
            assert_eq!(found[0], all[row]);
            same_bits(&soft_alone, &soft[row * 48..(row + 1) * 48]);
        }
    }
}

#[test]
fn heads_of_a_pass_keep_their_own_settings() {
    let case = Case::new(8, 200, 24, 1.0);
    let cpu = Cpu::new(2, None).unwrap();
    let first = Head { rows: 3, uniforms: &case.uniforms[..3], ..case.head(0.8, Draw::Argmax) };
    let second = Head {
        rows: 5,
        uniforms: &case.uniforms[3..],
        bias: &[(7, f32::NEG_INFINITY), (9, 50.0)],
        top_k: 64,
        ..case.head(0.5, Draw::Scaled { temperature: 0.9, top_p: 1.0 })
    };
    let (found, soft) = case.run(&cpu, 64, &[first, second]);
    for row in 0..8 {
        let mut head = if row < 3 { first } else { second };
        // The reference takes a finite number for what is forbidden.
        let finite = [(7, -1e30), (9, 50.0)];
        if row >= 3 {
            head.bias = &finite;
            assert_eq!(found[row].argmax, 9);
        }
        case.check(row, &head, &found[row], (&soft[row * 24..(row + 1) * 24], 1e-4));
    }
}

#[test]
fn every_logit_can_be_watched() {
    let case = Case::new(6, 150, 16, 1.0);
    let cpu = Cpu::new(2, None).unwrap();
    let table = plain(&cpu, 150, 16, &case.table);
    let seen = std::sync::Mutex::new(vec![f32::NAN; 6 * 150]);
    let watch = |row: usize, first: usize, logits: &[f32]| {
        seen.lock().unwrap()[row * 150 + first..][..logits.len()].copy_from_slice(logits);
    };
    let heads = [Head { bias: &[(2, 9.0)], ..case.head(0.5, Draw::Argmax) }];
    let sweep =
        Sweep { softcap: case.cap, tile: 64, negligible: 28.0, heads: &heads, watch: Some(&watch), times: None };
    cpu.sweep(&case.hidden, &table, &sweep, None).unwrap();
    let wanted: Vec<f64> = (0..6).flat_map(|row| case.z(row, &case.head(1.0, Draw::Argmax))).collect();
    close(&seen.into_inner().unwrap(), &wanted, 1e-5);
}

#[test]
fn a_guess_changes_nothing_but_the_work() {
    let case = Case::new(9, 500, 40, 6.0);
    for cpu in cpus(2) {
        let head = case.head(0.6, Draw::Scaled { temperature: 1.3, top_p: 1.0 });
        let heads = [head];
        let (plain_rows, _) = case.run(&cpu, 96, &heads);
        let table = plain(&cpu, 500, 40, &case.table);
        let sweep = Sweep { softcap: case.cap, tile: 96, negligible: 28.0, heads: &heads, watch: None, times: None };
        let best: Vec<u32> = plain_rows.iter().map(|row| row.argmax).collect();
        let other: Vec<u32> = (0..9).map(|row| row * 50).collect();
        for hints in [best, other] {
            let mut soft = vec![0.0; case.hidden.len()];
            let rows = cpu.sweep_from(&case.hidden, &table, &sweep, &hints, Some(&mut soft)).unwrap();
            for (row, (found, soft)) in rows.iter().zip(soft.chunks(40)).enumerate() {
                case.check(row, &head, found, (soft, 1e-4));
                assert_eq!(
                    (found.argmax, found.max, &found.top),
                    (plain_rows[row].argmax, plain_rows[row].max, &plain_rows[row].top)
                );
            }
        }
        assert!(cpu.sweep_from(&case.hidden, &table, &sweep, &[500; 9], None).is_err());
        assert!(cpu.sweep_from(&case.hidden, &table, &sweep, &[1], None).is_err());
    }
}

#[test]
fn equal_logits_give_the_lowest_id() {
    let mut case = Case::new(2, 300, 16, 1.0);
    let best = case.hidden[..16].iter().map(|x| x * 3.0).collect::<Vec<_>>();
    for token in [45, 46, 250] {
        case.table[token * 16..(token + 1) * 16].copy_from_slice(&best);
    }
    for cpu in cpus(1) {
        let (found, _) = case.run(&cpu, 96, &[case.head(1.0, Draw::Argmax)]);
        assert_eq!(found[0].argmax, 45);
        assert_eq!(found[0].top.iter().take(3).map(|c| c.token).collect::<Vec<_>>(), [45, 46, 250]);
    }
}

#[test]
fn top_p_cuts_the_whole_distribution_within_the_best() {
    let case = Case::new(40, 300, 16, 1.0);
    for cpu in cpus(1) {
        let (tight, _) = case.run(&cpu, 96, &[case.head(1.0, Draw::Scaled { temperature: 1.0, top_p: 1e-6 })]);
        assert!(tight.iter().all(|row| row.sampled == row.argmax));
        for (temperature, top_p) in [(1.0, 0.3), (1.0, 0.5), (1.6, 0.5), (1.0, 0.999)] {
            let head = case.head(1.0, Draw::Scaled { temperature, top_p });
            let (found, _) = case.run(&cpu, 96, &[head]);
            for (row, found) in found.iter().enumerate() {
                let mut masses: Vec<(f64, usize)> = case.z(row, &head).into_iter().zip(0..).collect();
                masses.sort_by(|a, b| b.0.total_cmp(&a.0));
                let max = masses[0].0;
                masses.iter_mut().for_each(|(z, _)| *z = ((*z - max) / f64::from(temperature)).exp());
                let total: f64 = masses.iter().map(|(mass, _)| mass).sum();
                let sums = masses.iter().scan(0.0, |sum, (mass, _)| {
                    *sum += mass;
                    Some(*sum)
                });
                let sums: Vec<f64> = sums.take(64).collect();
                let last = sums.iter().position(|sum| *sum >= f64::from(top_p) * total).unwrap_or(63);
                let at = masses.iter().position(|(_, token)| *token == found.sampled as usize).unwrap();
                assert!(at <= last, "row {row}: the {at}th best of {last} is beyond the nucleus");
                let (before, target) = (sums[at] - masses[at].0, f64::from(case.uniforms[row]) * sums[last]);
                let slack = 1e-4 * total;
                assert!(before - slack <= target && target <= sums[at] + slack, "row {row}: {before} {target}");
            }
        }
    }
}

#[test]
fn damaged_rows_are_reported_and_spoil_no_other() {
    let mut case = Case::new(13, 200, 24, 1.0);
    for cpu in cpus(2) {
        for bad in [f32::NAN, f32::INFINITY] {
            let head_of =
                |case: &Case| case.run(&cpu, 96, &[case.head(0.8, Draw::Scaled { temperature: 1.0, top_p: 0.9 })]);
            let (good, good_soft) = head_of(&case);
            let old = std::mem::replace(&mut case.hidden[5 * 24], bad);
            let (found, soft) = head_of(&case);
            case.hidden[5 * 24] = old;
            for row in (0..13).filter(|row| *row != 5) {
                assert_eq!(found[row], good[row]);
                same_bits(&soft[row * 24..(row + 1) * 24], &good_soft[row * 24..(row + 1) * 24]);
            }
            assert!(!found[5].finite && good[5].finite);
        }
    }
}

#[test]
fn wrong_heads_are_errors() {
    let case = Case::new(4, 100, 16, 1.0);
    let cpu = Cpu::new(1, None).unwrap();
    let table = plain(&cpu, 100, 16, &case.table);
    let good = case.head(1.0, Draw::Argmax);
    let run = |head: Head<'_>| {
        let heads = [head];
        cpu.sweep(
            &case.hidden,
            &table,
            &Sweep { softcap: None, tile: 64, negligible: 28.0, heads: &heads, watch: None, times: None },
            None,
        )
    };
    assert!(run(good).is_ok());
    assert!(run(Head { rows: 3, ..good }).is_err());
    assert!(run(Head { top_k: 65, ..good }).is_err());
    assert!(run(Head { bias: &[(100, 1.0)], ..good }).is_err());
    assert!(run(Head { uniforms: &[], draw: Draw::Scaled { temperature: 1.0, top_p: 1.0 }, ..good }).is_err());
}
