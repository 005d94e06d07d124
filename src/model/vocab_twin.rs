//! The vocabulary sweep in plain candle operations.

use std::ops::Range;
use std::time::Duration;

use candle_core::{Result, Tensor};

use super::backend::{Backend, host, product, weighted_rows};
use super::observe::Observer;
use super::vocab::{Request, Swept, VocabHead};
use crate::pass::{CANDIDATES, Candidate, Draw, Head, Row};

/// A sweep in plain candle operations.
pub(super) struct Twin<'a> {
    head: &'a VocabHead,
    table: &'a Tensor,
    backend: &'a Backend,
    hidden: &'a Tensor,
    requests: &'a [Request<'a>],
    /// Step temperature of each row, `[rows, 1]`.
    temperature: Tensor,
    /// The draw's own factor on it, `[rows, 1]`; `None` where every row's is 1.
    draw: Option<Tensor>,
}

/// Running values of all rows, each `[rows, 1]` unless said.
struct Running {
    max: Tensor,
    sum: Tensor,
    weighted: Tensor,
    argmax: Tensor,
    /// `[rows, hidden]`
    soft: Tensor,
}

/// One tile's share of every row.
struct TileMass {
    columns: Range<usize>,
    /// Σ exp((z − max)/draw) over the tile, per row.
    mass: Vec<f32>,
    /// The maximum it is relative to, per row.
    max: Vec<f32>,
}

impl<'a> Twin<'a> {
    pub fn new(
        head: &'a VocabHead,
        table: &'a Tensor,
        backend: &'a Backend,
        hidden: &'a Tensor,
        requests: &'a [Request<'a>],
    ) -> Result<Twin<'a>> {
        let rows = hidden.dim(0)?;
        let mut temperature = Vec::with_capacity(rows);
        let mut draw = Vec::with_capacity(rows);
        for request in requests {
            temperature.extend(std::iter::repeat_n(request.head.temperature, request.rows.len()));
            draw.extend(std::iter::repeat_n(draw_factor(request.head), request.rows.len()));
        }
        let draw = if draw.iter().all(|&d| d == 1.0) { None } else { Some(backend.tensor(draw, &[rows, 1])?) };
        let temperature = backend.tensor(temperature, &[rows, 1])?;
        Ok(Twin { head, table, backend, hidden, requests, temperature, draw })
    }

    pub fn sweep(&self, observer: &mut dyn Observer) -> Result<Swept> {
        let mut running: Option<Running> = None;
        let mut masses = Vec::new();
        let mut best: Vec<Vec<Candidate>> = vec![Vec::new(); self.hidden.dim(0)?];
        for first in (0..self.head.vocabulary).step_by(self.head.tile) {
            let columns = first..(first + self.head.tile).min(self.head.vocabulary);
            let raw = self.softcapped(self.hidden, &columns)?;
            if observer.wants_logits() {
                for (row, logits) in host(&raw)?.chunks_exact(columns.len()).enumerate() {
                    observer.logits(row, first, logits);
                }
            }
            let z = self.tempered(&raw, &columns)?;
            self.collect_best(&z, &columns, &mut best)?;
            let e = self.table.narrow(0, columns.start, columns.len())?;
            running = Some(self.fold(running, &z, &e, columns, &mut masses)?);
        }
        let Some(running) = running else { candle_core::bail!("a vocabulary without tokens") };
        self.finish(running, &masses, best)
    }

    /// `c·tanh(h·Eᵀ/c)` of some columns, `[rows, columns]`.
    fn softcapped(&self, hidden: &Tensor, columns: &Range<usize>) -> Result<Tensor> {
        let e = self.table.narrow(0, columns.start, columns.len())?;
        let cap = f64::from(self.head.softcap);
        (product(hidden, &e)? / cap)?.tanh()? * cap
    }

    /// `(softcapped + bias) / t`.
    fn tempered(&self, raw: &Tensor, columns: &Range<usize>) -> Result<Tensor> {
        let biased = |r: &Request<'_>| !bias_in(r.head, columns).is_empty();
        let mut z = raw.clone();
        if self.requests.iter().any(biased) {
            let mut parts = Vec::with_capacity(self.requests.len());
            for request in self.requests {
                let rows = raw.narrow(0, request.rows.start, request.rows.len())?;
                parts.push(match biased(request) {
                    true => rows.broadcast_add(&self.bias(request.head, columns)?)?,
                    false => rows,
                });
            }
            z = Tensor::cat(&parts, 0)?;
        }
        z.broadcast_div(&self.temperature)
    }

    fn bias(&self, head: &Head, columns: &Range<usize>) -> Result<Tensor> {
        let mut dense = vec![0.0; columns.len()];
        for &(token, bias) in bias_in(head, columns) {
            dense[token as usize - columns.start] = bias;
        }
        self.backend.tensor(dense, &[1, columns.len()])
    }

    fn fold(
        &self,
        before: Option<Running>,
        z: &Tensor,
        e: &Tensor,
        columns: Range<usize>,
        masses: &mut Vec<TileMass>,
    ) -> Result<Running> {
        let tile_max = z.max_keepdim(1)?;
        let tile_argmax = lowest_argmax(self.backend, z, &tile_max, columns.start)?;
        let max = match &before {
            Some(b) => b.max.maximum(&tile_max)?,
            None => tile_max.clone(),
        };
        let below = z.broadcast_sub(&max)?;
        let p = below.exp()?;
        let sum = p.sum_keepdim(1)?;
        let weighted = (&p * below.neg()?)?.sum_keepdim(1)?;
        let soft = weighted_rows(&p, e)?;
        let mass = match &self.draw {
            Some(draw) => below.broadcast_div(draw)?.exp()?.sum_keepdim(1)?,
            None => sum.clone(),
        };
        masses.push(TileMass { columns, mass: host(&mass)?, max: host(&max)? });
        let Some(b) = before else { return Ok(Running { max, sum, weighted, argmax: tile_argmax, soft }) };
        // Older sums are relative to the older maximum.
        let rise = (&max - &b.max)?;
        let shrink = rise.neg()?.exp()?;
        Ok(Running {
            argmax: tile_max.gt(&b.max)?.where_cond(&tile_argmax, &b.argmax)?,
            weighted: (((b.weighted + (&b.sum * rise)?)? * &shrink)? + weighted)?,
            sum: ((b.sum * &shrink)? + sum)?,
            soft: (b.soft.broadcast_mul(&shrink)? + soft)?,
            max,
        })
    }

    /// Best candidates of the rows that want any, best first, ties by lower id.
    fn collect_best(&self, z: &Tensor, columns: &Range<usize>, best: &mut [Vec<Candidate>]) -> Result<()> {
        for request in self.requests {
            let keep = wanted_best(request.head);
            if keep == 0 {
                continue;
            }
            let values = host(&z.narrow(0, request.rows.start, request.rows.len())?)?;
            for (row, best) in values.chunks_exact(columns.len()).zip(&mut best[request.rows.clone()]) {
                for (token, &logit) in (columns.start as u32..).zip(row) {
                    insert_best(best, Candidate { token, logit }, keep);
                }
            }
        }
        Ok(())
    }

    fn finish(&self, running: Running, masses: &[TileMass], best: Vec<Vec<Candidate>>) -> Result<Swept> {
        let (max, sum, weighted) = (host(&running.max)?, host(&running.sum)?, host(&running.weighted)?);
        let argmax = host(&running.argmax)?;
        let mut rows = Vec::with_capacity(max.len());
        for request in self.requests {
            for (i, &uniform) in request.rows.clone().zip(request.uniforms) {
                let lse = max[i] + sum[i].ln();
                let mut row = Row {
                    argmax: argmax[i] as u32,
                    sampled: argmax[i] as u32,
                    max: max[i],
                    lse,
                    entropy: (sum[i].ln() + weighted[i] / sum[i]).max(0.0),
                    top: best[i].clone(),
                };
                if lse.is_finite() {
                    row.sampled = self.draw(i, request.head, uniform, &row, masses)?;
                }
                row.top.truncate(request.head.top_k.into());
                rows.push(row);
            }
        }
        let scale = f64::from(self.head.scale);
        let soft = (running.soft.broadcast_div(&running.sum)? * scale)?;
        Ok(Swept { rows, soft, soft_time: Duration::ZERO })
    }

    fn draw(&self, i: usize, head: &Head, uniform: f32, row: &Row, masses: &[TileMass]) -> Result<u32> {
        let Draw::Scaled { temperature, top_p } = head.draw else { return Ok(row.argmax) };
        let (factor, top) = (f64::from(temperature), f64::from(row.max));
        let mass = |tile: &TileMass| f64::from(tile.mass[i]) * ((f64::from(tile.max[i]) - top) / factor).exp();
        let total: f64 = masses.iter().map(mass).sum();
        if top_p < 1.0 {
            return Ok(nucleus(row, factor, f64::from(top_p), total, uniform));
        }
        let mut target = f64::from(uniform) * total;
        let mut chosen = None;
        for tile in masses {
            let m = mass(tile);
            if m > 0.0 {
                chosen = Some((tile, target, m));
                if target < m {
                    break;
                }
            }
            target -= m;
        }
        let Some((tile, target, m)) = chosen else { return Ok(row.argmax) };
        self.inside(i, tile, (target / m).min(1.0), factor, top)
    }

    /// The token at `share` of a tile's mass, from the tile's logits computed again.
    fn inside(&self, i: usize, tile: &TileMass, share: f64, factor: f64, top: f64) -> Result<u32> {
        let raw = self.softcapped(&self.hidden.narrow(0, i, 1)?, &tile.columns)?;
        let mut z = host(&raw)?;
        let Some(request) = self.requests.iter().find(|r| r.rows.contains(&i)) else {
            candle_core::bail!("row {i} belongs to no canvas")
        };
        for &(token, bias) in bias_in(request.head, &tile.columns) {
            z[token as usize - tile.columns.start] += bias;
        }
        let weight = |z: f32| ((f64::from(z / request.head.temperature) - top) / factor).exp();
        let mut target = share * z.iter().map(|&z| weight(z)).sum::<f64>();
        let mut chosen = tile.columns.start;
        for (token, &z) in tile.columns.clone().zip(&z) {
            let w = weight(z);
            if w > 0.0 {
                chosen = token;
                if target < w {
                    break;
                }
            }
            target -= w;
        }
        Ok(chosen as u32)
    }
}

/// The factor on the step's temperature under which a row's token is drawn.
fn draw_factor(head: &Head) -> f32 {
    match head.draw {
        Draw::Argmax => 1.0,
        Draw::Scaled { temperature, .. } => temperature,
    }
}

/// How many candidates the sweep has to keep.
fn wanted_best(head: &Head) -> usize {
    match head.draw {
        Draw::Scaled { top_p, .. } if top_p < 1.0 => CANDIDATES,
        _ => head.top_k.into(),
    }
}

/// The biases that fall into some columns.
fn bias_in<'h>(head: &'h Head, columns: &Range<usize>) -> &'h [(u32, f32)] {
    let at = |column: usize| head.bias.partition_point(|b| (b.0 as usize) < column);
    &head.bias[at(columns.start)..at(columns.end)]
}

/// Keeps the `keep` best, best first; an equal logit seen later has a higher id and stays behind.
fn insert_best(best: &mut Vec<Candidate>, candidate: Candidate, keep: usize) {
    if best.len() == keep && best.last().is_some_and(|last| candidate.logit <= last.logit) {
        return;
    }
    let at = best.partition_point(|b| b.logit >= candidate.logit);
    best.insert(at, candidate);
    best.truncate(keep);
}

/// A draw from the smallest set of best candidates whose mass reaches `top_p` of the whole vocabulary's; from all that are
/// kept where they do not reach it.
fn nucleus(row: &Row, factor: f64, top_p: f64, total: f64, uniform: f32) -> u32 {
    let weight = |c: &Candidate| ((f64::from(c.logit) - f64::from(row.max)) / factor).exp();
    let mut kept = 0.0;
    let mut count = 0;
    for candidate in &row.top {
        kept += weight(candidate);
        count += 1;
        if kept >= top_p * total {
            break;
        }
    }
    let mut target = f64::from(uniform) * kept;
    for candidate in &row.top[..count] {
        let w = weight(candidate);
        if target < w {
            return candidate.token;
        }
        target -= w;
    }
    row.argmax
}

/// The lowest column that reaches the tile's maximum, as f32 token ids `[rows, 1]` (exact below 2²⁴).
fn lowest_argmax(backend: &Backend, z: &Tensor, max: &Tensor, first: usize) -> Result<Tensor> {
    let columns = z.dim(1)?;
    let ids = (first..first + columns).map(|i| i as f32).collect();
    let ids = backend.tensor(ids, &[1, columns])?.broadcast_as(z.shape())?;
    let none = backend.tensor(vec![f32::MAX], &[1, 1])?.broadcast_as(z.shape())?;
    z.broadcast_ge(max)?.where_cond(&ids, &none)?.min_keepdim(1)
}
