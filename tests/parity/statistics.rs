//! What the sweep says of a row, against the same said naively in f64 from the whole row of logits.

use std::sync::Arc;

use canvasd::model::{LoadOptions, probe};
use canvasd::pass::{Conditioning, Draw, KvView, Row, Segment};

use super::company::tokens;
use super::fixture::{Fixture, committed};
use super::world::{World, rows};

const TEMPERATURE: f32 = 0.7;
const BIAS: [(u32, f32); 4] = [(3, -100.0), (95, 9.5), (96, 30.0), (399, 2.0)];
const TOP: usize = 8;

#[test]
fn rows_agree_with_the_naive_definition() {
    for fixture in committed() {
        for operations in [probe::Operations::ByDevice, probe::Operations::Twins] {
            for tile in [Some(96), None] {
                for draw in [
                    Draw::Argmax,
                    Draw::Scaled { temperature: 1.0, top_p: 1.0 },
                    Draw::Scaled { temperature: 1.6, top_p: 1.0 },
                    Draw::Scaled { temperature: 1.0, top_p: 0.5 },
                ] {
                    check(&fixture, probe::Tuning { operations, vocabulary_tile: tile }, draw);
                }
            }
        }
    }
}

fn check(fixture: &Fixture, tuning: probe::Tuning, draw: Draw) {
    let mut world = World::load(&fixture.checkpoint(), &LoadOptions::default(), tuning);
    let (canvas, vocabulary) = (world.limits.canvas, world.limits.vocabulary);
    let mut kv = KvView::default();
    let prompt = world.encode(&mut kv, &tokens(7, 12, vocabulary));
    let mut segment = world.denoise(&kv, 2, Conditioning::Fresh, &tokens(8, canvas, vocabulary), TEMPERATURE);
    let Segment::Denoise { head, uniforms, .. } = &mut segment else { unreachable!("denoise makes a denoise segment") };
    (head.draw, head.bias, head.top_k) = (draw, Arc::from(BIAS), TOP as u8);
    let uniforms = uniforms.clone();
    let (outputs, seen) = world.run(vec![prompt, segment]);
    let soft = probe::soft(&world.model, 2).expect("a slot");
    let hidden = soft.len() / canvas;
    for (i, row) in rows(&outputs[1]).iter().enumerate() {
        let mut z: Vec<f64> = seen.logits[i].iter().map(|&x| f64::from(x)).collect();
        for (token, bias) in BIAS {
            z[token as usize] += f64::from(bias);
        }
        z.iter_mut().for_each(|z| *z /= f64::from(TEMPERATURE));
        statistics(row, &z);
        drawn(row, &z, draw, uniforms[i]);
    }
    // Injecting the same logits must give the same soft embedding as the sweep itself left.
    let mut logits = Vec::new();
    for row in &seen.logits {
        let mut z = row.clone();
        for (token, bias) in BIAS {
            z[token as usize] += bias;
        }
        logits.extend(z.iter().map(|z| z / TEMPERATURE));
    }
    probe::inject_logits(&mut world.model, 3, &logits).expect("a slot");
    let naive = probe::soft(&world.model, 3).expect("a slot");
    assert_eq!(naive.len(), canvas * hidden);
    for (a, b) in soft.iter().zip(&naive) {
        assert!((a - b).abs() < 1e-4, "soft embedding {a} instead of {b}");
    }
}

fn statistics(row: &Row, z: &[f64]) {
    let max = z.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let sum: f64 = z.iter().map(|z| (z - max).exp()).sum();
    let lse = max + sum.ln();
    let entropy: f64 = -z.iter().map(|z| (z - lse).exp() * (z - lse)).sum::<f64>();
    assert!((f64::from(row.max) - max).abs() < 1e-4, "max {} instead of {max}", row.max);
    assert!((f64::from(row.lse) - lse).abs() < 1e-4, "lse {} instead of {lse}", row.lse);
    assert!((f64::from(row.entropy) - entropy).abs() < 1e-3, "entropy {} instead of {entropy}", row.entropy);
    let mut order: Vec<usize> = (0..z.len()).collect();
    order.sort_by(|&a, &b| z[b].total_cmp(&z[a]).then(a.cmp(&b)));
    assert_eq!(row.argmax as usize, order[0]);
    assert_eq!(row.top.len(), TOP);
    for (candidate, &token) in row.top.iter().zip(&order) {
        // Two candidates within rounding of each other may swap.
        assert!((f64::from(candidate.logit) - z[token]).abs() < 1e-4);
        assert!((z[candidate.token as usize] - z[token]).abs() < 1e-4);
    }
}

/// The drawn token must be the one whose share of the distribution the uniform number falls into.
fn drawn(row: &Row, z: &[f64], draw: Draw, uniform: f32) {
    let Draw::Scaled { temperature, top_p } = draw else {
        assert_eq!(row.sampled, row.argmax);
        return;
    };
    let max = z.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let weight: Vec<f64> = z.iter().map(|z| ((z - max) / f64::from(temperature)).exp()).collect();
    let total: f64 = weight.iter().sum();
    let mut order: Vec<usize> = (0..z.len()).collect();
    if top_p < 1.0 {
        order.sort_by(|&a, &b| z[b].total_cmp(&z[a]).then(a.cmp(&b)));
        let mut kept = 0.0;
        let enough = order.iter().position(|&t| {
            kept += weight[t];
            kept >= f64::from(top_p) * total
        });
        order.truncate(enough.map_or(64, |n| n + 1).min(64));
    }
    let kept: f64 = order.iter().map(|&token| weight[token]).sum();
    let target = f64::from(uniform) * kept;
    let at = order.iter().position(|&token| token == row.sampled as usize);
    let at = at.expect("a token outside the nucleus was drawn");
    let below: f64 = order[..at].iter().map(|&token| weight[token]).sum();
    let slack = 1e-4 * total;
    assert!(below <= target + slack, "token {} begins at {below}, target {target}", row.sampled);
    assert!(target < below + weight[row.sampled as usize] + slack, "token {} ends before {target}", row.sampled);
}
